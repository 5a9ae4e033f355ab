"""Speed of the layers: against PyTorch, against plain lax, inside loops.

`python -m benchmarks.layers` prints one table. All candidates of a row run in
turn, over and over, and their medians are compared, with freed memory kept in
the process as `launch.py` does. PyTorch comes with the extra `peers`; without
it its row is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxadv import models
from jaxadv.models import layers
from jaxadv.utils import keep_freed_memory

SIZE, CLASSES, TURNS = 32, 10, 8


def medians(
  candidates: dict[str, Callable[[], object]], repeats: int
) -> dict[str, float]:
  """Seconds of each candidate, taken in turn after one call to warm up."""
  for run in candidates.values():
    run()
  times: dict[str, list[float]] = {name: [] for name in candidates}
  for _ in range(repeats):
    for name, run in candidates.items():
      start = time.perf_counter()
      run()
      times[name].append(time.perf_counter() - start)
  return {name: statistics.median(values) for name, values in times.items()}


def gradients(
  name: str, width: float, batch: int, whats: Sequence[str], lax_too: bool
) -> dict[tuple[str, str], Callable[[], object]]:
  """One gradient step a call ('bare') and `TURNS` of them in a loop.

  Args:
    name: A backbone; it is given the smallest images it takes, 32x32 at least.
    width: Its width.
    batch: Number of images.
    whats: 'input', 'weights' or both.
    lax_too: Whether to add `('input', 'lax')`, the loop on the layers of lax
      (whose kernel gradients in loops would take minutes).

  Returns:
    Compiled functions by `(what, kind)`, with the kinds 'bare' and 'loop'.
  """
  size = max(SIZE, models.BACKBONES[name].min_size)
  module = models.build(name, num_classes=CLASSES, width=width, image_size=size)
  variables = models.init_variables(jax.random.key(0), module, size)
  images = jax.random.uniform(jax.random.key(1), (batch, size, size, 3))
  params = variables.pop('params')

  def loss(images, params):
    logits: Any = module.apply({'params': params, **variables}, images)
    return jnp.sum(jax.nn.logsumexp(logits, axis=-1))

  def step(which):
    def turn(_, carry):
      change = jax.grad(loss, which)(*carry)
      moved = jax.tree.map(
        lambda value, step: value - 1e-6 * step, carry[which], change
      )
      return (moved, carry[1]) if which == 0 else (carry[0], moved)

    return turn

  def bare(which):
    return lambda *carry: step(which)(0, carry)[which]

  def loop(which):
    return lambda *carry: lax.fori_loop(0, TURNS, step(which), carry)[which]

  def compile_(function):
    run = jax.jit(function).lower(images, params).compile()
    return lambda: jax.block_until_ready(run(images, params))

  compiled = {
    (what, kind): compile_(form(which))
    for which, what in enumerate(('input', 'weights'))
    if what in whats
    for form, kind in ((bare, 'bare'), (loop, 'loop'))
  }
  if lax_too and 'input' in whats:
    on_cpu = layers._on_cpu
    layers._on_cpu = lambda: False
    compiled['input', 'lax'] = compile_(loop(0))
    layers._on_cpu = on_cpu
  return compiled


def torch_input_gradient(width: float, batch: int, threads: int):
  """One input-gradient of the same VGG11 in PyTorch, its weights frozen."""
  import torch

  torch.set_num_threads(threads)
  parts: list[torch.nn.Module] = []
  channels = 3
  widths = (64, 128, 256, 512, 512)
  for block, (depth, features) in enumerate(
    zip(models.vgg.DEPTHS['vgg11'], widths, strict=True)
  ):
    for _ in range(depth):
      out = int(features * width)
      parts += [torch.nn.Conv2d(channels, out, 3, padding=1), torch.nn.ReLU()]
      channels = out
    if block < 4:
      parts.append(torch.nn.MaxPool2d(2))
  parts += [
    torch.nn.AdaptiveAvgPool2d(1),
    torch.nn.Flatten(),
    torch.nn.Linear(channels, CLASSES),
  ]
  net = torch.nn.Sequential(*parts).requires_grad_(False).eval()
  images = torch.rand(batch, 3, SIZE, SIZE, requires_grad=True)
  return lambda: torch.autograd.grad(
    torch.logsumexp(net(images), 1).sum(), images
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    '--networks',
    default='vgg11,mobilenet',
    help=f'of {", ".join(models.BACKBONES)}',
  )
  parser.add_argument(
    '--gradients', default='input,weights', help='input, weights or both'
  )
  parser.add_argument(
    '--lax',
    action=argparse.BooleanOptionalAction,
    default=True,
    help='compare with the layers of lax, which take long to compile',
  )
  parser.add_argument('--width', type=float, default=0.5)
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument(
    '--threads', type=int, default=2, help='of PyTorch; give JAX as many cores'
  )
  flags = parser.parse_args()
  keep_freed_memory()
  rows = []
  whats = flags.gradients.split(',')
  if not set(whats) <= {'input', 'weights'}:
    parser.error(
      f'--gradients is {flags.gradients}; give input, weights or both'
    )
  for name in flags.networks.split(','):
    runs = gradients(name, flags.width, flags.batch, whats, flags.lax)
    if (
      'input' in whats and name == 'vgg11' and importlib.util.find_spec('torch')
    ):
      runs['input', 'torch'] = torch_input_gradient(
        flags.width, flags.batch, flags.threads
      )
    for what in whats:
      seconds = medians(
        {kind: run for (of, kind), run in runs.items() if of == what},
        flags.repeats,
      )
      bare, turn = seconds['bare'], seconds['loop'] / TURNS
      rows.append((name, what, 'in a loop', 'bare', turn, bare))
      if 'torch' in seconds:
        rows.append((name, what, 'bare', 'PyTorch', bare, seconds['torch']))
      if 'lax' in seconds:
        other = seconds['lax'] / TURNS
        rows.append((name, what, 'in a loop', 'lax in a loop', turn, other))
  print(
    f'gradients, width {flags.width}, batch {flags.batch}, '
    f'{jax.default_backend()}, jax {jax.__version__}'
  )
  print(
    f'{"network":12} {"by":8} {"ours":>10} {"against":>14} '
    f'{"ms":>8} {"ms":>9} {"ratio":>6}'
  )
  for name, what, form, against, own, other in rows:
    print(
      f'{name:12} {what:8} {form:>10} {against:>14} {1e3 * own:8.1f} '
      f'{1e3 * other:9.1f} {own / other:6.2f}'
    )


if __name__ == '__main__':
  main()
