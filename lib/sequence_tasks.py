"""Real data as sequences of ``T`` tokens: the class of a handwritten digit, the next character of a book.

Shapes: ``N`` inputs of ``T`` tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib.text import alice

TRAINING_DIGITS = 1500  # of 1797; the images are ordered by writer, so that the last come from other hands


@dataclass(frozen=True)
class Task:
    """Inputs (N, T) and targets: a class each (N,), or, with a causal mask, the next token at each place (N, T).

    Args:
        vocabulary: number of different tokens; 0 for tokens that are real numbers.
        outputs: number of classes.
        causal: token ``i`` may attend to tokens ``0, ..., i`` only, and every token has a target.
    """

    x: Tensor
    y: Tensor
    held_out_x: Tensor
    held_out_y: Tensor
    vocabulary: int
    outputs: int
    causal: bool

    def to(self, device: torch.device | str) -> "Task":
        """The same task with its data on that device."""
        names = ("x", "y", "held_out_x", "held_out_y")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def digits(shuffle: torch.Generator | None = None) -> Task:
    """Handwritten digits of 8 x 8 pixels as ``T = 64`` real tokens; the last 297 images are held out.

    Args:
        shuffle: deals the labels of the training images out at random, so that there is nothing to learn.

    Source: scikit-learn's ``load_digits``, from the UCI repository.
    """
    from sklearn.datasets import load_digits

    pixels, labels = (torch.from_numpy(a) for a in load_digits(return_X_y=True))
    x, y, n = pixels.float(), labels.long(), TRAINING_DIGITS
    x = (x - x[:n].mean()) / x[:n].std()
    train = y[:n] if shuffle is None else y[:n][torch.randperm(n, generator=shuffle)]
    return Task(x[:n], train, x[n:], y[n:], vocabulary=0, outputs=10, causal=False)


def characters(T: int = 64, shuffle: torch.Generator | None = None) -> Task:
    """The next character of *Alice in Wonderland*, in windows of ``T``; the last tenth of the book is held out.

    Training windows start at every character, as views of one text; the held-out ones are 64 at equal distances.

    Args:
        T: length of a window.
        shuffle: permutes the characters of the training part, so that the context tells nothing.
    """
    if T < 1:
        raise ValueError(f"T: got {T}; a window has at least 1 character")
    letters, code = torch.tensor(list(alice().encode())).unique(return_inverse=True)
    n = len(code) * 9 // 10
    train, held_out = code[:n], code[n:]
    if len(held_out) < 64 + T:
        raise ValueError(f"T: got {T}; 64 windows of the held-out {len(held_out)} characters need a smaller T")
    if shuffle is not None:
        train = train[torch.randperm(n, generator=shuffle)]
    x, h = train.unfold(0, T + 1, 1), held_out.unfold(0, T + 1, (len(held_out) - T - 1) // 63)[:64]
    return Task(x[:, :-1], x[:, 1:], h[:, :-1], h[:, 1:], vocabulary=len(letters), outputs=len(letters), causal=True)


TASKS: dict[str, Callable[..., Task]] = {"digits": digits, "text": characters}
"""The two tasks by name; each takes ``shuffle``."""


def draw_batches(task: Task, steps: int, batch: int, generator: torch.Generator) -> Tensor:
    """Which training examples each step sees, shape (steps, batch), with replacement."""
    return torch.randint(len(task.x), (steps, batch), generator=generator)
