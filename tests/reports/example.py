"""A record as a transfer experiment leaves it, with made-up scores."""

import numpy as np

from jaxadv import reports
from jaxadv.metrics import intervals, roc

GROUPS = {
  'natural': ('IN-A', 'IN-A+'),
  'artificial': ('DF', 'FGSM', 'PGD'),
  'semantic': ('NI+', 'NI-', 'HSV'),
}
KINDS = tuple(kind for names in GROUPS.values() for kind in names)


def scores(backbones=('VGG16', 'MobileNet'), n=150, seed=0):
  """Gives {'scores/BACKBONE/TRAINED/TESTED': float32[n]}, 'clean' included."""
  rng = np.random.default_rng(seed)
  arrays = {}
  for backbone in backbones:
    for i, trained in enumerate(KINDS):
      name = f'scores/{backbone}/{trained}'
      arrays[f'{name}/clean'] = rng.normal(size=n).astype(np.float32)
      for j, tested in enumerate(KINDS):
        lift = 2.5 if i == j else rng.normal(0.4, 0.6)
        # The first natural kind has few pictures.
        m = n // 2 if tested == 'IN-A' else n
        arrays[f'{name}/{tested}'] = rng.normal(lift, size=m).astype(np.float32)
  return arrays


def rows(arrays):
  """Measures every cell; the paper's numbers are ours, moved by five."""
  found = []
  for name, attacked in arrays.items():
    _, backbone, trained, tested = name.split('/')
    if tested == 'clean':
      continue
    clean = arrays[f'scores/{backbone}/{trained}/clean']
    both = np.concatenate([clean, attacked])
    value = 100 * roc.auc(both, np.arange(both.size) >= clean.size)
    ids = np.arange(clean.size), np.arange(attacked.size)
    low, high = intervals.bootstrap_auc(clean, attacked, *ids, num=50)
    found.append(
      reports.Row(
        labels={
          'backbone': backbone,
          'trained_on': trained,
          'tested_on': tested,
        },
        metric='AUC (%)',
        value=value,
        ci_low=100 * low,
        ci_high=100 * high,
        n=attacked.size,
        paper=None if trained == tested else value - 5,
      )
    )
    if trained == tested:
      keys = {'backbone': backbone, 'kind': trained}
      found.append(
        reports.Row(keys, 'seen AUC (%)', value, 100 * low, 100 * high, 150, 93)
      )
  for backbone in dict.fromkeys(row.labels['backbone'] for row in found):
    keys = {'backbone': backbone, 'control': 'shuffled labels'}
    found.append(reports.Row(keys, 'control AUC (%)', 50.4, 44.0, 56.1, 150))
  return tuple(found)


def pictures(side=32, examples=4, seed=1):
  """Gives smooth clean pictures and versions with growing noise."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:side, :side] / side
  waves = rng.uniform(2, 9, size=(len(KINDS), examples, 1, 1, 3, 2))
  clean = 0.5 + 0.4 * np.sin(
    x[..., None] * waves[..., 0] + y[..., None] * waves[..., 1]
  )
  size = np.linspace(0.01, 0.5, len(KINDS))[:, None, None, None, None]
  noise = np.sign(rng.normal(size=clean.shape)) * size
  return {
    'examples/clean': np.uint8(255 * clean),
    'examples/attacked': np.uint8(255 * np.clip(clean + noise, 0, 1)),
  }


def example(backbones=('VGG16', 'MobileNet'), side=32):
  """Gives (record, arrays)."""
  arrays = scores(backbones)
  record = reports.Record(
    experiment='unseen_transfer',
    variant='quick',
    config={'seed': 0, 'data_dir': '/somewhere/private/tfds', 'trials': 100},
    provenance={'git_commit': None, 'seconds': 12.5, 'seeds': [0]},
    claims=(
      reports.Claim(
        'seen kinds are detected well, and DeepFool is the hardest',
        'held',
        {'mean seen AUC': [93.1, 91.0, 95.2], 'DeepFool': 81.25},
      ),
      reports.Claim(
        'IN-A is easier than IN-A+ on every backbone',
        'did not',
        {'VGG16 difference': -1.5},
      ),
      reports.Claim(
        'detectors trained on natural kinds do better on semantic kinds',
        'cannot tell',
        {'difference': [0.4, -2.1, 3.0]},
      ),
    ),
    rows=rows(arrays),
    missing=('DenseNet121: no weights.',),
    question='Does a detector trained on one kind of adversarial example '
    'recognise another?',
    answer='Within a category often, across categories rarely.',
    tables=(
      reports.Table(
        'Transfer',
        'AUC (%)',
        ('trained_on',),
        'tested_on',
        split='backbone',
        columns=KINDS,
      ),
      reports.Table('Seen', 'seen AUC (%)', ('backbone',), 'kind'),
      reports.Table(
        'Controls',
        'control AUC (%)',
        ('backbone',),
        'control',
        note='Both intervals should hold 50.',
        control=True,
      ),
    ),
    figures=(
      *(
        reports.Plot(
          f'transfer_{backbone}',
          'transfer_matrix',
          f'Transfer between kinds, {backbone}.',
          {
            'metric': 'AUC (%)',
            'filters': {'backbone': backbone},
            'groups': GROUPS,
          },
        )
        for backbone in backbones
      ),
      reports.Plot(
        'seen',
        'interval_bars',
        'Detection of kinds seen in training (Figure 4 of the paper).',
        {'metric': 'seen AUC (%)', 'category': 'kind', 'series': 'backbone'},
      ),
      reports.Plot(
        'roc',
        'roc_curves',
        'ROC curves of detectors on the kind they were trained on.',
        {
          'panels': {
            backbone: {
              kind: [
                f'scores/{backbone}/{kind}/clean',
                f'scores/{backbone}/{kind}/{kind}',
              ]
              for kind in KINDS
            }
            for backbone in backbones
          }
        },
      ),
      reports.Plot(
        'examples',
        'example_pictures',
        'Pictures of every kind and how they were changed.',
        {
          'kinds': KINDS,
          'labels': [
            [['seven', 'three'], ['Egyptian cat', 'container ship']] * 2
          ]
          * len(KINDS),
          'without_clean': ['IN-A'],
        },
      ),
    ),
  )
  return record, arrays | pictures(side)
