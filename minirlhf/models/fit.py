"""Whether a model and its tokenizer fit each other, and which tokens end a response."""

from torch import nn
from transformers import PreTrainedTokenizerBase

from minirlhf.runtime import check


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids of the tokens that end a response; the tokenizer's EOS comes first.

    A chat model often has several, such as an end of turn and an end of text. They are the EOS of
    the tokenizer and what `generation_config` names. One exception: a single id that transformers
    copied from config.json counts only if it is a special token of the tokenizer. Many config
    classes name an EOS by default, which is an ordinary word in another tokenizer.

    Raises:
        ValueError: as `check_fit`; or generation_config names something else than ids.
    """
    check_fit(model, tokenizer)
    generation = getattr(model, "generation_config", None)
    named = getattr(generation, "eos_token_id", None)
    if isinstance(named, int) and getattr(generation, "_from_model_config", False):
        named = [named] if named in tokenizer.all_special_ids else []
    others = named if isinstance(named, list) else [] if named is None else [named]
    whole = all(type(number) is int and 0 <= number < 2**31 for number in others)
    check("eos_token_id in generation_config", named, whole, "a token id or a list of token ids")
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *others]))


def same_vocabulary(a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers have the same tokens with the same ids."""
    return a.get_vocab() == b.get_vocab()


def check_fit(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the model can read every token that the tokenizer writes, and that there is EOS.

    The tokenizer may be smaller than the embedding: vocabularies are often padded. It may also have
    a padding token or an image token beyond the embedding: neither is read.

    Raises:
        ValueError: there is no EOS, or a token's id is beyond the model's embedding.
    """
    eos, its_id = tokenizer.eos_token, tokenizer.eos_token_id
    unknown = its_id == tokenizer.unk_token_id and eos != tokenizer.unk_token
    if eos is None or its_id is None or unknown:
        given = "names no EOS" if eos is None else f"has no token {eos!r}, which it names as EOS"
        raise ValueError(
            f"The tokenizer {given} (end of sequence); every command that trains or samples needs "
            'EOS: name one of its tokens as "eos_token" in tokenizer_config.json, or in Python '
            "set tokenizer.eos_token."
        )
    rows = embedding_rows(model)
    unread = (tokenizer.pad_token, getattr(tokenizer, "image_token", None))
    ids = {
        token: number
        for token, number in tokenizer.get_vocab().items()
        if token not in unread or token == eos
    }
    last = max(ids, key=lambda token: ids[token])
    if ids[last] >= rows:
        raise ValueError(
            f"The tokenizer has ids up to {ids[last]} ({last!r}), but the model's embedding has "
            f"{rows} rows, for the ids 0 to {rows - 1}; give the model's own tokenizer, or enlarge "
            f"the model with resize_token_embeddings({ids[last] + 1}) and save it."
        )


def embedding_rows(model: nn.Module) -> int:
    """The number of token ids that a transformers model can read: 0 to this number - 1."""
    return len(model.get_input_embeddings().weight)  # type: ignore[operator]  # torch: Tensor | Module
