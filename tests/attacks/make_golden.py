"""Records what Foolbox's attacks do to a tiny network, for test_parity.py.

Run by hand, with torch and foolbox (extra `peers`) installed:
  python tests/attacks/make_golden.py
"""

import pathlib

import foolbox
import numpy as np
import torch

FILE = pathlib.Path(__file__).parent / 'golden.npz'
EPSILON = 0.03
EPSILON_L2 = 0.5
EPSILON_L1 = 4.0


class Net(torch.nn.Module):
  """Two strided convolutions, flattened height-width-channel, one matrix."""

  def __init__(self):
    super().__init__()
    self.first = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
    self.second = torch.nn.Conv2d(8, 12, 3, stride=2, padding=1)
    self.logits = torch.nn.Linear(3 * 3 * 12, 10)

  def forward(self, images):
    hidden = torch.relu(self.second(torch.relu(self.first(images))))
    return 8 * self.logits(hidden.permute(0, 2, 3, 1).flatten(1))


class SparseL1Descent(foolbox.attacks.SparseL1DescentAttack):
  """Foolbox's, whose own projection (3.3.4) can end outside of the ball."""

  def project(self, x, x0, epsilon):
    delta = (x - x0).raw.double().flatten(1)
    low, high = torch.zeros(len(delta), 1), torch.ones(len(delta), 1)
    shrink = lambda by: delta.sign() * (delta.abs() - by).clamp(min=0)
    for _ in range(60):  # Halves the interval that holds the threshold.
      middle = (low + high) / 2
      outside = shrink(middle).abs().sum(1, keepdim=True) > epsilon
      low = torch.where(outside, middle, low)
      high = torch.where(outside, high, middle)
    inside = delta.abs().sum(1, keepdim=True) <= epsilon
    nearest = torch.where(inside, delta, shrink(high)).float()
    return x0 + nearest.reshape(x0.shape)


def main():
  torch.manual_seed(0)
  net = Net().eval()
  images = torch.rand(16, 3, 12, 12)
  labels = net(images).argmax(-1)
  model = foolbox.PyTorchModel(net, bounds=(0, 1))
  pgd = {'steps': 10, 'random_start': False}
  deepfool = dict(steps=50, candidates=10, overshoot=0.02, loss='logits')
  runs = {
    'fgsm': (foolbox.attacks.LinfFastGradientAttack(), EPSILON),
    'bim': (
      foolbox.attacks.LinfBasicIterativeAttack(abs_stepsize=EPSILON / 4, **pgd),
      EPSILON,
    ),
    'pgd_linf': (
      foolbox.attacks.LinfProjectedGradientDescentAttack(
        abs_stepsize=EPSILON / 4, **pgd
      ),
      EPSILON,
    ),
    'pgd_l2': (
      foolbox.attacks.L2ProjectedGradientDescentAttack(
        abs_stepsize=EPSILON_L2 / 4, **pgd
      ),
      EPSILON_L2,
    ),
    'pgd_l1': (
      SparseL1Descent(abs_stepsize=EPSILON_L1 / 4, **pgd),
      EPSILON_L1,
    ),
    'deepfool': (foolbox.attacks.L2DeepFoolAttack(**deepfool), None),
    'deepfool_linf': (foolbox.attacks.LinfDeepFoolAttack(**deepfool), None),
  }
  to_nhwc = lambda batch: batch.detach().permute(0, 2, 3, 1).numpy()
  record = {
    'images': to_nhwc(images),
    'labels': labels.numpy().astype(np.int32),
    'epsilon': np.float32(EPSILON),
    'epsilon_l2': np.float32(EPSILON_L2),
    'epsilon_l1': np.float32(EPSILON_L1),
  }
  for name, layer in net.named_children():
    weight = layer.weight.detach()
    kernel = weight.permute(2, 3, 1, 0) if weight.ndim == 4 else weight.T
    record[f'{name}_kernel'] = kernel.numpy()
    record[f'{name}_bias'] = layer.bias.detach().numpy()
  for name, (attack, epsilon) in runs.items():
    raw, _, success = attack(model, images, labels, epsilons=epsilon)
    record[name] = to_nhwc(raw)
    record[f'{name}_success'] = success.numpy()
    print(name, success.float().mean().item())
  np.savez_compressed(FILE, **record)
  print(FILE.stat().st_size, 'bytes')


if __name__ == '__main__':
  main()
