"""lm-evaluation-harness on any model that lmjax opens.

The import of this module registers the model `lmjax` with the harness, whose command line and API then accept it:

    python -m lmjax.lm_eval --model lmjax --model_args path=MODEL --tasks lambada_openai
    lm_eval.simple_evaluate(model="lmjax", model_args="path=MODEL", tasks=["lambada_openai"])
    lm_eval.simple_evaluate(model=harness.Harness(language_model), tasks=["lambada_openai"])

The harness provides requests and metrics; `evaluation.scoring` and `generate` provide the answers. lm_eval does not
discover models in other packages, so its own command does not know this model.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from lmjax.config import UserError
from lmjax.config.errors import nearest
from lmjax.evaluation import evaluator, scoring
from lmjax.inference import incremental
from lmjax.inference.generate import generate
from lmjax.inference.language_model import FirstToken, LanguageModel, with_first
from lmjax.inference.sampling import Sampling
from lmjax.interop import chat_templates
from lmjax.pytrees import count
from lmjax.run import pretrained
from lmjax.serve import chat_template, generation_kwargs
from lmjax.system.extras import missing

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError:
    raise missing("lmjax.lm_eval", "lm-evaluation-harness", "evaluate") from None

_log = logging.getLogger(__name__)
_IGNORED = ("batch_size", "max_batch_size", "device", "trust_remote_code")  # which the harness passes to every model


@register_model("lmjax")
class Harness(LM):
    """A model with the interface of the harness.

    Args:
        path: A run, a Hugging Face folder, a .gguf file, or a loaded model.
        checkpoint: As in `pretrained.load`.
        dtype: As in `pretrained.load`.
        first_token: What precedes a text without context: model, bos, end or none (see `with_first`).
        prefix_token_id: The same as the id of a token, as in the harness's Hugging Face models.
        others: Arguments that the harness passes to every model, such as a batch size; lmjax chooses its own.

    Raises:
        UserError: There is no such model, or an argument is unknown.
    """

    def __init__(
        self,
        path: str | Path | LanguageModel,
        *,
        checkpoint: str | int = "newest",
        dtype: Literal["float32", "bfloat16"] = "float32",
        first_token: FirstToken = "model",
        prefix_token_id: int | str | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        unknown = next((name for name in others if name not in _IGNORED), None)
        if unknown is not None:
            known = ("path", "checkpoint", "dtype", "first_token", "prefix_token_id")
            raise UserError(f"model_args: lmjax has no '{unknown}'{nearest(unknown, known)}; it has {', '.join(known)}")
        loaded = isinstance(path, LanguageModel)
        lm = path if loaded else pretrained.load(str(path), checkpoint=str(checkpoint), dtype=dtype)
        chosen = first_token if prefix_token_id is None else _token_id(prefix_token_id)
        self.lm = replace(lm if chosen == "model" else with_first(lm, chosen), special=True)  # as HFLM, for templates
        templates = chat_templates.of_model(lm) if loaded else chat_templates.of_path(Path(str(path)))
        # The class of the tokenizer and other files name special tokens, too.
        self._templates = replace(templates, tokens={**templates.tokens, **lm.tokenizer.named})
        self._template: str | None = None
        self._cut = {"loglikelihood": 0, "loglikelihood_continuation": 0, "generate_until": 0}

    # ---- What the harness asks a model about itself ----

    @property
    def prefix_token_id(self) -> int | None:
        """The id that precedes a text without context; None: no such id."""
        return next(iter(self.lm.before()), None)

    @property
    def eot_token_id(self) -> int | None:
        """The id that ends a text."""
        return self.lm.end

    @property
    def max_length(self) -> int | None:
        """The context of the model; None: unlimited."""
        return incremental.limit(self.lm.model.config)

    @property
    def max_gen_toks(self) -> int:
        """The default length of a continuation."""
        return generation_kwargs.MAX_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """A name of the tokenizer and the chat template, by which the harness stores prompts."""
        template = self._templates.choose(self._template).source
        return f"lmjax_{self.lm.tokenizer.sha256[:16]}_{hashlib.sha256(template.encode()).hexdigest()[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Choose a chat template, by its name if the model has several; returns its source.

        Raises:
            UserError: The model has no such template.
        """
        self._template = chat_template if isinstance(chat_template, str) else None
        return self._templates.choose(self._template).source if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a chat with the template of the model.

        Raises:
            UserError: The model has no template, or the template is malformed or refuses the chat.
        """
        return chat_template.render(self._templates, chat_history, reply=add_generation_prompt, name=self._template)

    def get_model_info(self) -> dict[str, Any]:
        """Return facts for the results: what precedes a text, how many requests did not fit."""
        return {
            "model_num_parameters": count(self.lm.params),
            "model_dtype": self.lm.model.config.dtype if hasattr(self.lm.model.config, "dtype") else "",
            "first_token": self.lm.first_token(),
            "truncated": dict(self._cut),
        }

    # ---- Requests ----

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score each (context, continuation).

        Returns:
            For each, the log-probability in nats and whether the continuation is the greedy choice.
        """
        texts = [request.args for request in requests]
        encoded = [scoring.encode(self.lm, *text) for text in texts]
        parts = [scoring.cut(request, self.max_length) for request in encoded]
        self._report("loglikelihood", sum(context > 0 for context, _ in parts), len(parts))
        self._report("loglikelihood_continuation", sum(scored > 0 for _, scored in parts), len(parts))
        with tqdm(total=len(encoded), desc="lmjax: log-probabilities", disable=disable_tqdm or None) as bar:

            def take(answers: Mapping[int, scoring.Found]) -> None:
                for i, answer in answers.items():
                    self.cache_hook.add_partial("loglikelihood", texts[i], (answer.logprob, answer.greedy))
                bar.update(len(answers))

            return [(answer.logprob, answer.greedy) for answer in scoring.score(self.lm, encoded, take=take)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each (text,) in nats.

        Windows of the context predict every token once.
        """
        windows = [scoring.rolling(self.lm, *request.args) for request in requests]
        request_of_window = [i for i, request_windows in enumerate(windows) for _ in request_windows]
        sums = [0.0] * len(requests)
        with tqdm(total=len(request_of_window), desc="lmjax: windows of texts", disable=disable_tqdm or None) as bar:

            def take(answers: Mapping[int, scoring.Found]) -> None:
                bar.update(len(answers))

            answers = scoring.score(
                self.lm, [window for request_windows in windows for window in request_windows], take=take
            )
        for i, answer in zip(request_of_window, answers, strict=True):
            sums[i] += answer.logprob
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return, for each (context, settings), the continuation up to a text of `until`.

        The settings are those of `generation_kwargs`; decoding is greedy unless they select sampling. A context that is
        too long is truncated at its beginning. The text is decoded as in the harness's Hugging Face models: alone, and
        without special tokens.

        Raises:
            UserError: A setting is invalid, or the continuation leaves no room for the context.
        """
        kinds: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            settings = request.arguments[1].items()
            kinds.setdefault(repr(sorted((str(name), repr(value)) for name, value in settings)), []).append(i)
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="lmjax: continuations", disable=disable_tqdm or None) as bar:
            for batch in (batch for alike in kinds.values() for batch in self._batches(requests, alike)):
                settings = generation_kwargs.sampling(
                    requests[batch[0]].arguments[1], model=self.lm.generation, seed=batch[0]
                )
                contexts = [requests[i].arguments[0] for i in batch]
                for i, text in zip(batch, self._continued(contexts, settings), strict=True):
                    texts[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                bar.update(len(batch))
        return texts

    def _continued(self, contexts: Sequence[str], settings: Sampling) -> list[str]:
        limit, ids = self.max_length, [self.lm.ids(context) for context in contexts]
        if limit is not None:
            if settings.max_tokens >= limit:
                raise UserError(
                    f"max_gen_toks={settings.max_tokens} must be less than the context of the model, {limit}; set it, "
                    "for instance with --gen_kwargs max_gen_toks=32"
                )
            room = limit - settings.max_tokens
            self._report("generate_until", sum(len(context) > room for context in ids), len(ids))
            ids = [context[-room:] for context in ids]
        return generate(self.lm, ids, sampling=settings, alone=True)

    def _report(self, kind: str, number: int, total: int) -> None:
        """Record and print the number of requests that do not fit in the context."""
        self._cut[kind] += number
        if number:
            _log.warning("lmjax: %d of %d requests (%s) are longer than the context and were cut", number, total, kind)

    def _batches(self, requests: Sequence[Instance], alike: list[int]) -> list[list[int]]:
        """Group the indices of requests into batches of similar length."""
        order = sorted(alike, key=lambda i: len(requests[i].arguments[0]), reverse=True)
        return [order[start : start + evaluator.ROWS] for start in range(0, len(order), evaluator.ROWS)]


def _token_id(value: int | str) -> int:
    text = str(value)
    if isinstance(value, bool) or not (text.isdecimal() and len(text) < 10):  # also 1.5, which int would round
        raise UserError(f"model_args: prefix_token_id={value!r:.80} is not the id of a token")
    return int(text)


def command() -> int:
    """Run the harness's own command with the arguments of this process.

    It then accepts `--model lmjax`.
    """
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
    return 0
