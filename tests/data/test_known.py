import pytest

from jaxadv.data.known import may_mirror


@pytest.mark.parametrize(
  'name',
  [
    'cifar10',
    'cifar10:3.0.2',
    'CIFAR-10',
    'imagenet2012',
    'imagenet_a',
    'imagenette160',
    'imagenette/160px-v2',
    'pictures/cifar10/3.0.2',
    'pictures/imagenette/160px-v2/1.0.0',
    'pictures/of/imagewoof160',
    'tiny-imagenet-200/',
    'pictures/cifar100.npz',
  ],
)
def test_photographs_may_be_mirrored(name):
  assert may_mirror(name)


@pytest.mark.parametrize(
  'name',
  [
    'digits',
    'mnist:3.0.1',
    'pictures/mnist/3.0.1',
    'kmnist',
    'emnist/letters',
    'svhn_cropped',
    'own.npz',
    'cifar10/of/pentominoes',
    'imagenetters',
    '',
  ],
)
def test_digits_letters_and_sets_that_nobody_knows_may_not(name):
  assert not may_mirror(name)


def test_a_folder_in_a_folder_called_as_a_set_is_none(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert may_mirror('cifar10/plain')  # a config
  (tmp_path / 'cifar10' / 'plain').mkdir(parents=True)
  assert not may_mirror('cifar10/plain')
