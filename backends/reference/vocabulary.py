"""The byte-level vocabulary: token id = byte, and a few specials.

It is written as an ordinary ``tokenizer.json``, so that the model's folder opens with
``AutoTokenizer`` as any other and nothing in the recorder knows of it.
"""

from typing import Any

BYTES = 256
SEPARATOR = 256
PADDING = 257
VOCABULARY_TOKENS = 264
SEPARATOR_NAME = "<|document|>"
PADDING_NAME = "<|padding|>"


def byte_characters() -> list[str]:
    """Return the printable character that stands for each byte in GPT-2's byte-level alphabet."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (chr(BYTES + index) for index in range(BYTES))
    return [chr(byte) if byte in printable else next(others) for byte in range(BYTES)]


def make_tokenizer() -> Any:  # noqa: ANN401 - a class of transformers, imported lazily
    """Return transformers' tokenizer for it: a separator before each text, then its bytes."""
    import tokenizers  # noqa: PLC0415 - heavy
    import transformers  # noqa: PLC0415 - heavy
    from tokenizers import decoders, models, pre_tokenizers, processors  # noqa: PLC0415 - heavy

    ids = {character: byte for byte, character in enumerate(byte_characters())}
    backend = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=[]))
    backend.add_special_tokens(
        [tokenizers.AddedToken(name, special=True) for name in (SEPARATOR_NAME, PADDING_NAME)]
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{SEPARATOR_NAME} $A", special_tokens=[(SEPARATOR_NAME, SEPARATOR)]
    )
    make: Any = transformers.PreTrainedTokenizerFast
    return make(
        tokenizer_object=backend,
        bos_token=SEPARATOR_NAME,
        eos_token=SEPARATOR_NAME,
        pad_token=PADDING_NAME,
        clean_up_tokenization_spaces=False,
    )
