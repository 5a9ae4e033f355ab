"""Records what AutoAttack does to the network of make_golden.py.

For test_auto.py. Run by hand, with torch and pyautoattack (extra `peers`):
  python tests/attacks/make_golden_auto.py
"""

import pathlib

import numpy as np
import torch
from make_golden import Net
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack

FILE = pathlib.Path(__file__).parent / 'golden_auto.npz'
NORMS = {'linf': 'Linf', 'l2': 'L2'}
# Few pictures succumb to the small radii, about half to the large ones.
SMALL = {'linf': 0.01, 'l2': 0.12}
LARGE = {'linf': 0.03, 'l2': 0.35}
NUM_STEPS = 30
NUM_QUERIES = 300


def main():
  torch.set_num_threads(1)
  torch.manual_seed(0)  # The weights are those of make_golden.py.
  net = Net().eval()
  # Square Attack on L2 needs a side that is a multiple of five.
  images = torch.rand(64, 3, 10, 10)
  labels = net(images).argmax(-1)
  labels[::16] = (labels[::16] + 1) % 10
  right = net(images).argmax(-1) == labels
  to_nhwc = lambda batch: batch.detach().permute(0, 2, 3, 1).numpy()
  record = {
    'images': to_nhwc(images),
    'labels': labels.numpy().astype(np.int32),
    'num_steps': NUM_STEPS,
    'num_queries': NUM_QUERIES,
  }
  for name, norm in NORMS.items():
    small, large = SMALL[name], LARGE[name]
    record[f'{name}_small'], record[f'{name}_large'] = small, large
    options = {'norm': norm, 'eps': small, 'device': 'cpu'}

    # From the clean picture, so that nothing is random.
    apgd = APGDAttack(net, n_iter=NUM_STEPS, **options)
    apgd_t = APGDAttack_targeted(net, n_iter=NUM_STEPS, **options)
    apgd_t.y_target = net(images).argsort(-1)[:, -2]
    for part, attack in ('apgd', apgd), ('apgd_t', apgd_t):
      attack.init_hyperparam(images)
      best, robust, _, _ = attack.attack_single_run(
        images, labels, x_init=images
      )
      record[f'{name}_{part}'] = to_nhwc(best)[right][:16]
      record[f'{name}_{part}_success'] = ~robust[right][:16].numpy()
      print(name, part, 'robust', robust[right].float().mean().item())

    sizes = []
    order = 2 if name == 'l2' else np.inf
    for rank in 2, 3:
      fab = FABAttack_PT(net, n_iter=NUM_STEPS, targeted=True, **options)
      fab.target_class = rank
      changed = fab.attack_single_run(
        images[right], labels[right], is_targeted=True
      )
      delta = (changed - images[right]).flatten(1).numpy()
      sizes.append(np.linalg.norm(delta, ord=order, axis=1))
    record[f'{name}_fab'] = np.stack(sizes)
    print(name, 'fab', np.median(sizes, axis=1))

    square = SquareAttack(
      net,
      norm=norm,
      n_queries=NUM_QUERIES,
      eps=large,
      resc_schedule=False,
      device='cpu',
    )
    changed = square.perturb(images, labels)
    fooled = net(changed).argmax(-1) != labels
    record[f'{name}_square_success'] = fooled.numpy()
    print(name, 'square robust', 1 - fooled.float().mean().item())

    auto = AutoAttack(net, norm=norm, eps=large, device='cpu', seed=0)
    changed, _ = auto.run_standard_evaluation(images, labels, batch_size=64)
    robust = net(changed).argmax(-1) == labels
    record[f'{name}_auto_success'] = ~robust.numpy()
    print(name, 'auto robust', robust.float().mean().item())

  schedule = SquareAttack(net, eps=1.0, n_queries=5000, resc_schedule=False)
  record['bump'] = SquareAttack(net, norm='L2', eps=1.0, device='cpu').eta(7)
  record['p'] = np.float32([schedule.p_selection(it) for it in range(9000)])
  np.savez_compressed(FILE, **record)
  print(FILE.stat().st_size, 'bytes')


if __name__ == '__main__':
  main()
