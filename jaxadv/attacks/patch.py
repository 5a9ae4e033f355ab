"""Attacks that change a square: within a ball, without bound, universal."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxadv import losses
from jaxadv.attacks.pgd import pgd
from jaxadv.attacks.universal import over_batches
from jaxadv.attacks.wrap import against, one_shot
from jaxadv.errors import UserError
from jaxadv.inputs import as_float
from jaxadv.norms import Ball, Radius, as_ball, linf_ball, per_row
from jaxadv.types import (
  Attack,
  AttackResult,
  ClassifierLike,
  Images,
  Keys,
  Labels,
)
from jaxadv.utils import check_range, check_whole


def in_square(
  attack: Attack, size: int, *, place: tuple[int, int] | None = None
) -> Attack:
  """Restricts an attack to a square of every picture.

  The attack sees a classifier that looks at the square alone and finds the
  clean picture around it; there is no gradient to follow outside.

  Args:
    attack: Any `Attack` that changes pictures, such as PGD.
    size: Side of the square in pixels, from 1 to the picture's shorter side.
    place: Row and column of the upper left corner, from 0; None draws them
      for each picture, uniformly among those that keep the square inside.

  Returns:
    An `Attack` whose images equal the clean ones outside the square.

  Raises:
    UserError: If the square does not fit into the pictures.
  """
  check_whole('size', size, 1)
  if place is not None and np.shape(place) != (2,):
    raise UserError(
      f'place is {place!r} but must be a row and a column, or None'
    )

  def draw(keys: Keys, images: Images) -> jax.Array:
    sides = images.shape[1:3]
    if size > min(sides):
      raise UserError(
        f'size is {size} but must be at most {min(sides)}, the shorter side '
        'of the pictures'
      )
    if place is None:
      room = jnp.array(sides, jnp.int32) - size
      corner = lambda key: jax.random.randint(key, (2,), 0, room + 1, jnp.int32)
      return jax.vmap(corner)(keys)
    for side, start in zip(sides, place, strict=True):
      check_whole('place', start, 0, side - size)
    return jnp.broadcast_to(jnp.array(place, jnp.int32), (len(keys), 2))

  def show(attacked: Images, images: Images, corners: jax.Array) -> Images:
    """Takes the square from one picture and the rest from the other."""
    inside = jnp.ones((), bool)
    for axis in (1, 2):
      shape = [1] * 4
      shape[axis] = images.shape[axis]
      offset = jnp.arange(images.shape[axis]).reshape(shape) - per_row(
        corners[:, axis - 1], images
      )
      inside = inside & (offset >= 0) & (offset < size)
    return jnp.where(inside, attacked, images)

  def view(
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
    corners: jax.Array,
  ) -> ClassifierLike:
    del labels
    return lambda attacked: classifier(show(attacked, images, corners))

  restricted = against(attack, view, draw)

  def finish(
    classifier: ClassifierLike, images: Images, labels: Labels, state: Any
  ) -> AttackResult:
    result = restricted.finish(classifier, images, labels, state)
    return result._replace(images=show(result.images, images, state.given))

  return dataclasses.replace(restricted, finish=finish)


def patch(
  epsilon: Radius | Ball,
  size: int = 8,
  num_steps: int = 100,
  step_size: Radius | None = None,
  *,
  place: tuple[int, int] | None = None,
  targeted: bool = False,
  early_stop: bool = False,
) -> Attack:
  """Climbs the loss in a square of the picture and inside an Linf ball.

  A budget attack: PGD from the clean picture with steps along the sign of the
  gradient of the cross-entropy, that may change one square only.

  Args:
    epsilon: Radius of the ball in image units, in (0, 1]; the paper's are
      4/255, 8/255 and 16/255. A scalar or float32[B], traced or not, or
      `linf_ball(...)`.
    size: Side of the square in pixels; the paper's are 4, 8 and 16.
    num_steps: Number of steps, at least 1.
    step_size: Length of a step in image units, above 0; a scalar or
      float32[B], traced or not. None follows the radius, see `pgd`.
    place: Upper left corner as row and column, or None for a random place in
      each picture.
    targeted: Whether `labels` name the classes to reach.
    early_stop: Whether a row rests as soon as it succeeds.

  Returns:
    An `Attack`, random if `place` is None.

  Raises:
    UserError: If a hyperparameter lies outside its range.

  The paper does not give the step size.

  References:
    Souri et al., Identification of Attack-Specific Signatures in Adversarial
    Examples, 2021, table 2.
  """
  attack = pgd(
    as_ball(epsilon, allowed=('linf',), attack='patch'),
    step_size,
    num_steps,
    random_start=False,
    targeted=targeted,
    early_stop=early_stop,
  )
  return in_square(attack, size, place=place)


def lavan(
  size: int = 8,
  num_steps: int = 100,
  step_size: Radius | None = None,
  *,
  place: tuple[int, int] | None = None,
  targeted: bool = False,
  early_stop: bool = False,
) -> Attack:
  """Replaces a square by visible noise that takes over the prediction.

  Raises one logit and lowers another at the same time: with targets, those of
  the class to reach and of its strongest rival; without, those of the
  strongest other class and of the true one. Pixels of the square may take
  any value in [0, 1].

  Args:
    size: Side of the square in pixels; the paper covers 2 % of a picture.
    num_steps: Number of steps, at least 1.
    step_size: Length of a step in image units, above 0; a scalar or
      float32[B], traced or not. None follows the number of steps, see `pgd`;
      the radius is 1.
    place: Upper left corner as row and column, or None for a random place in
      each picture.
    targeted: Whether `labels` name the classes to reach, as in the paper.
    early_stop: Whether a row rests as soon as it succeeds; the paper goes on,
      for confidence.

  Returns:
    An `Attack`, random if `place` is None.

  Raises:
    UserError: If a hyperparameter lies outside its range.

  Departs from the paper: the logit lowered is that of the target's strongest
  rival at each step, which is the source class until the patch has displaced
  it; steps follow the sign of the gradient, so that their length is in image
  units, and start at the clean picture.

  References:
    Karmon et al., LaVAN: Localized and Visible Adversarial Noise, 2018,
    https://arxiv.org/abs/1801.02608, section 3.
  """
  attack = pgd(
    linf_ball(1.0),
    step_size,
    num_steps,
    random_start=False,
    targeted=targeted,
    early_stop=early_stop,
    loss=losses.margin,
  )
  return in_square(attack, size, place=place)


def _check_placement(scales: tuple[float, float], max_angle: float) -> None:
  if not isinstance(scales, tuple | list) or len(scales) != 2:
    raise UserError(
      f'scales are {scales} but must be two, the smallest and the largest'
    )
  for scale in scales:
    check_range('scales', scale, 0, 1, open_low=True)
  check_range('max_angle', max_angle, 0, 180)


def _checked_patch(patch: ArrayLike) -> jax.Array:
  """Gives a patch as float32 in [0, 1], or says why that cannot be."""
  shape = np.shape(patch)
  if len(shape) != 3 or shape[0] != shape[1] or 0 in shape:
    raise UserError(
      f'patch has the shape {shape} but must be a square [S, S, C]'
    )
  return jnp.asarray(as_float(patch, 'patch'))


def place_patch(
  keys: Keys,
  images: Images,
  patch: jax.Array,
  *,
  scales: tuple[float, float] = (0.3, 0.5),
  max_angle: float = 20.0,
) -> jax.Array:
  """Pastes a patch into every picture: scaled, turned, somewhere inside.

  Differentiable in the patch, which is read bilinearly. That rounds: pixels
  may leave [0, 1] by 1e-7, and to clip them here would hide their gradient.

  Args:
    keys: key[B], decide scale, angle and place, all uniform.
    images: float32[B, H, W, C] in [0, 1].
    patch: [S, S, C], floating in [0, 1] or uint8.
    scales: Smallest and largest side of the pasted patch, as a share of the
      picture's shorter side, in (0, 1].
    max_angle: Largest turn to either side in degrees, in [0, 180].

  Returns:
    float32[B, H, W, C].

  Raises:
    UserError: If a scale or the angle lies outside its range, or the patch
      does not fit the pictures.
  """
  _check_placement(scales, max_angle)
  patch = _checked_patch(patch)
  if patch.shape[-1] != images.shape[-1]:
    raise UserError(
      f'patch has {patch.shape[-1]} channels but the pictures have '
      f'{images.shape[-1]}'
    )
  height, width = images.shape[1:3]

  def paste(key: jax.Array, image: jax.Array) -> jax.Array:
    draws = jax.random.uniform(key, (4,), jnp.float32)
    side = min(height, width) * (scales[0] + (scales[1] - scales[0]) * draws[0])
    angle = jnp.deg2rad(max_angle) * (2 * draws[1] - 1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    # Half of the room that the turned square takes; its centre keeps this
    # far from the border, or in the middle if there is not so much room.
    reach = side / 2 * (jnp.abs(cos) + jnp.abs(sin))

    def offsets(length: int, draw: jax.Array) -> jax.Array:
      low = jnp.minimum(reach, length / 2)
      centres = jnp.arange(length, dtype=jnp.float32) + 0.5
      return centres - (low + (length - 2 * low) * draw)

    down = offsets(height, draws[2])[:, None]
    right = offsets(width, draws[3])[None, :]
    # Where in the patch each pixel lies, from 0 to 1 inside of it.
    row = (cos * down - sin * right) / side + 0.5
    column = (sin * down + cos * right) / side + 0.5
    inside = (0 <= row) & (row <= 1) & (0 <= column) & (column <= 1)
    points = [axis * len(patch) - 0.5 for axis in (row, column)]
    read = lambda channel: jax.scipy.ndimage.map_coordinates(
      channel, points, order=1, mode='nearest'
    )
    pasted = jax.vmap(read, in_axes=-1, out_axes=-1)(patch)
    return jnp.where(inside[..., None], pasted, image)

  return jax.vmap(paste)(keys, images)


def train_patch(
  key: jax.Array,
  classifier: ClassifierLike,
  images: ArrayLike,
  labels: ArrayLike,
  *,
  size: int,
  targeted: bool = False,
  num_epochs: int = 10,
  batch_size: int = 64,
  learning_rate: float = 0.05,
  scales: tuple[float, float] = (0.3, 0.5),
  max_angle: float = 20.0,
) -> jax.Array:
  """Trains one patch that works in any picture, wherever it is put.

  Adam on the mean loss of batches in which every picture gets the patch with
  a scale, angle and place of its own (expectation over transformations).

  Args:
    key: Decides the order of the pictures and all placements.
    classifier: The classifier under attack.
    images: [N, H, W, C], uint8 or floating in [0, 1].
    labels: int[N], the true classes, or the classes to reach (the paper: the
      same for all).
    size: Side of the patch in its own pixels, at least 1; about the side that
      it has in pictures does well.
    targeted: Whether `labels` name the classes to reach. The loss lowered is
      then the cross-entropy, else the margin of the true class over others.
    num_epochs: How often every picture is seen, at least 1.
    batch_size: Pictures at a time.
    learning_rate: Of Adam, in image units, above 0.
    scales: See `place_patch`.
    max_angle: See `place_patch`.

  Returns:
    float32[size, size, C] in [0, 1]; see `apply_patch`.

  Raises:
    UserError: If an argument has the wrong shape or range, or the classifier
      cannot be attacked; see `evaluate`.
    DataError: If a picture or the classifier has a NaN.

  Departs from the paper: a square, not a disc; scales, angles and optimiser
  are ours, and so is the untargeted form.

  References:
    Brown et al., Adversarial Patch, 2017, https://arxiv.org/abs/1712.09665,
    section 2.
  """
  check_whole('size', size, 1)
  check_range('learning_rate', learning_rate, 0, float('inf'), open_low=True)
  import optax

  optimizer = optax.adam(learning_rate)

  def update(
    carry: Any,
    keys: Keys,
    classifier: ClassifierLike,
    images: Images,
    labels: Labels,
  ) -> Any:
    patch, state = carry

    def cost(patch: jax.Array) -> jax.Array:
      logits = classifier(
        place_patch(keys, images, patch, scales=scales, max_angle=max_angle)
      )
      if targeted:
        return losses.cross_entropy(logits, labels).mean()
      return -losses.margin(logits, labels).mean()

    change, state = optimizer.update(jax.grad(cost)(patch), state)
    return jnp.clip(patch + change, 0, 1), state

  start = jnp.full((size, size, np.shape(images)[-1]), 0.5, jnp.float32)
  trained, _ = over_batches(
    update,
    (start, optimizer.init(start)),
    key,
    classifier,
    images,
    labels,
    num_epochs=num_epochs,
    batch_size=batch_size,
  )
  return trained


def apply_patch(
  patch: ArrayLike,
  *,
  scales: tuple[float, float] = (0.3, 0.5),
  max_angle: float = 20.0,
  targeted: bool = False,
) -> Attack:
  """Pastes a given patch into every picture, at random.

  Args:
    patch: [S, S, C], floating in [0, 1] or uint8; see `train_patch`.
    scales: See `place_patch`.
    max_angle: See `place_patch`.
    targeted: Whether `labels` name the classes to reach.

  Returns:
    A one-shot `Attack`.

  Raises:
    UserError: If a scale or the angle lies outside its range, the patch is no
      picture, or (once called) has other channels than the pictures.
  """
  _check_placement(scales, max_angle)
  patch = _checked_patch(patch)

  def perturb(keys: Keys, images: Images) -> Images:
    placed = place_patch(
      keys, images, patch, scales=scales, max_angle=max_angle
    )
    return jnp.clip(placed, 0, 1)

  return one_shot(perturb, targeted=targeted)
