"""Records C&W, DDN and EAD of Foolbox and adv-lib, with make_golden.py's net.

Run by hand after make_golden.py, with torch, foolbox and adv-lib installed:
  python tests/attacks/make_golden_cw.py
"""

import pathlib
import sys
from unittest import mock

# adv-lib imports both; the attacks here use neither.
sys.modules.update(torchvision=mock.MagicMock(), visdom=mock.MagicMock())

import adv_lib.attacks  # noqa: E402
import foolbox  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from make_golden import FILE as NET_FILE  # noqa: E402
from make_golden import Net  # noqa: E402

FILE = pathlib.Path(__file__).parent / 'golden_cw.npz'
NUM_STEPS, RUNS, INITIAL_CONST = 100, 6, 0.01


def load_net(record):
  net = Net().eval()
  for name, layer in net.named_children():
    kernel = torch.tensor(record[f'{name}_kernel'])
    convolution = kernel.ndim == 4
    weight = kernel.permute(3, 2, 0, 1) if convolution else kernel.T
    layer.weight.data = weight.contiguous()
    layer.bias.data = torch.tensor(record[f'{name}_bias'])
  return net


def main():
  torch.manual_seed(0)
  with np.load(NET_FILE) as file:
    source = dict(file)
  net = load_net(source)
  images = torch.tensor(source['images']).permute(0, 3, 1, 2).contiguous()
  labels = torch.tensor(source['labels']).long()
  targets = (labels + 1) % 10
  model = foolbox.PyTorchModel(net, bounds=(0, 1))
  search = {
    'binary_search_steps': RUNS,
    'initial_const': INITIAL_CONST,
    'abort_early': False,
  }

  def of_foolbox(attack, targeted=False):
    criterion = foolbox.criteria.Misclassification(labels)
    if targeted:
      criterion = foolbox.criteria.TargetedMisclassification(targets)
    return attack(model, images, criterion, epsilons=None)[0]

  def of_adv_lib(attack, targeted=False, **options):
    wanted = targets if targeted else labels
    return attack(net, images, wanted, targeted=targeted, **options)

  def ead(rule):
    return foolbox.attacks.EADAttack(
      steps=NUM_STEPS, decision_rule=rule, **search
    )

  cw = adv_lib.attacks.carlini_wagner_l2
  cw_options = search | {'max_iterations': NUM_STEPS}
  ddn = adv_lib.attacks.ddn
  runs = {
    'cw_foolbox': of_foolbox(
      foolbox.attacks.L2CarliniWagnerAttack(steps=NUM_STEPS, **search)
    ),
    'cw': of_adv_lib(cw, **cw_options),
    'cw_targeted': of_adv_lib(cw, targeted=True, **cw_options),
    'cw_confident': of_adv_lib(cw, confidence=1.0, **cw_options),
    'ddn_foolbox': of_foolbox(foolbox.attacks.DDNAttack(steps=NUM_STEPS)),
    'ddn': of_adv_lib(ddn, steps=NUM_STEPS),
    'ddn_targeted': of_adv_lib(ddn, targeted=True, steps=NUM_STEPS),
    'ead': of_foolbox(ead('EN')),
    'ead_l1': of_foolbox(ead('L1')),
    'ead_targeted': of_foolbox(ead('EN'), targeted=True),
  }
  record = {
    name: attacked.detach().permute(0, 2, 3, 1).numpy()
    for name, attacked in runs.items()
  }
  for name, attacked in runs.items():
    size = (attacked.detach() - images).flatten(1).norm(dim=1)
    hit = net(attacked).argmax(-1)
    wanted = hit == targets if 'targeted' in name else hit != labels
    print(name, wanted.float().mean().item(), size.median().item())
  np.savez_compressed(FILE, **record)
  print(FILE.stat().st_size, 'bytes')


if __name__ == '__main__':
  main()
