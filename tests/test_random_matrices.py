"""lib.random_matrices: draws against closed forms and naive draws, factors against LAPACK."""

import pytest
import torch
from scipy import stats

from lib.random_matrices import cholesky, contingency_table, frame, gram, shuffle, wishart


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_random_groups_are_counted_as_dealing_cards_counts_them():
    g, rows, size, groups, draws = generator(6), 3, 4, 2, 30_000
    table = contingency_table((draws,), rows, size, groups, g)
    assert (table.sum(-1) == rows * size // groups).all()
    assert (table.sum(-2) == size).all()
    cards = torch.arange(rows).repeat_interleave(size)[torch.rand(draws, rows * size, generator=g).argsort(-1)]
    dealt = torch.stack([(cards[:, : rows * size // groups] == row).sum(-1) for row in range(rows)], -1)
    outcomes = [(t @ torch.tensor([25, 5, 1])).bincount(minlength=125) for t in (table[:, 0], dealt)]
    both = torch.stack([count[sum(outcomes) > 20] for count in outcomes])
    assert stats.chi2_contingency(both.numpy()).pvalue > 1e-3
    with pytest.raises(ValueError, match="groups: got 5"):
        contingency_table((2,), rows, size, 5, g)


def test_the_mean_of_a_frame_is_right_in_closed_form():
    """E u_1^4 = 3 / (m (m + 2)) on the sphere; E Wishart = freedom I."""
    C = frame(5, 2, generator(), (40_000,))
    assert float(C[:, 0, 0].pow(4).mean()) == pytest.approx(3 / 35, rel=0.03)
    for freedom in (2, 7):
        mean = wishart(freedom, torch.empty(40_000, 3, 1), generator()).mean(0)
        torch.testing.assert_close(mean, freedom * torch.eye(3, dtype=torch.float64), atol=0.1, rtol=0)


def test_semidefinite_cholesky():
    X = torch.randn(6, 5, 3, dtype=torch.float64, generator=generator())
    G = X @ X.mT  # rank 3 of 5
    L = cholesky(G)
    torch.testing.assert_close(L @ L.mT, G, rtol=1e-9, atol=1e-9)
    assert not L.triu(1).any()
    full = gram(torch.randn(4, 9, dtype=torch.float64, generator=generator()))
    torch.testing.assert_close(cholesky(full), torch.linalg.cholesky(full))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_shuffle_moves_whole_columns(k, dtype):
    Z = torch.arange(k * 50, dtype=dtype).reshape(k, 50).expand(4, k, 50)
    S = shuffle(Z, generator())
    assert not torch.equal(S[0], S[1])
    order = S[:, 0].long()
    torch.testing.assert_close(S, Z.gather(-1, order[:, None].expand(4, k, 50)))
    assert (order.sort(-1).values == torch.arange(50)).all()
