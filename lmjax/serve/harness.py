"""lm-evaluation-harness on any model that lmjax opens.

The import of this module registers the model `lmjax` with the harness, whose command line and API then accept it:

    python -m lmjax.lm_eval --model lmjax --model_args path=MODEL --tasks lambada_openai
    lm_eval.simple_evaluate(model="lmjax", model_args="path=MODEL", tasks=["lambada_openai"])
    lm_eval.simple_evaluate(model=harness.Harness(language_model), tasks=["lambada_openai"])

The harness provides requests and metrics; `evaluation.scoring` and `generate` provide the answers. lm_eval does not
discover models in other packages, so its own command does not know this model.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from lmjax.config import UserError
from lmjax.evaluation import evaluator, scoring
from lmjax.inference.language_model import LanguageModel
from lmjax.inference.sampling import Sampling
from lmjax.run import pretrained

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError:
    raise UserError("lm-evaluation-harness is not installed: pip install 'lmjax[evaluate]'") from None

MAX_TOKENS = 256  # default length of a continuation, as in the harness's own models
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_CHOICES = ("top_k", "top_p", "min_p", "repetition_penalty")
_NEUTRAL = {"num_beams": 1}  # settings that lmjax does not support, with the value that has no effect


@register_model("lmjax")
class Harness(LM):
    """A model with the interface of the harness.

    Args:
        path: A run, a Hugging Face folder, a .gguf file, or a loaded model.
        checkpoint: As in `pretrained.load`.
        dtype: As in `pretrained.load`.
        batch_size: Ignored; the harness passes it, but lmjax chooses its own.
        max_batch_size: ignored.
        device: ignored.

    Raises:
        UserError: There is no such model.
    """

    def __init__(
        self,
        path: str | Path | LanguageModel,
        *,
        checkpoint: str | int = "newest",
        dtype: Literal["float32", "bfloat16"] = "float32",
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        loaded = isinstance(path, LanguageModel)
        self.lm = path if loaded else pretrained.load(path, checkpoint=str(checkpoint), dtype=dtype)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score each (context, continuation).

        Returns:
            For each, the log-probability in nats and whether the continuation is the greedy choice.
        """
        texts = [request.args for request in requests]
        encoded = [scoring.encode(self.lm, *text) for text in texts]
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

        The settings are those of `sampling`; decoding is greedy unless they select sampling. A context that is too long
        is truncated at its beginning.
        """
        kinds: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            kinds.setdefault(json.dumps(request.arguments[1], sort_keys=True), []).append(i)
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="lmjax: continuations", disable=disable_tqdm or None) as bar:
            for batch in (batch for alike in kinds.values() for batch in self._batches(requests, alike)):
                settings = sampling(requests[batch[0]].arguments[1], seed=batch[0])
                contexts = [requests[i].arguments[0] for i in batch]
                for i, text in zip(batch, evaluator.continued(self.lm, contexts, sampling=settings), strict=True):
                    texts[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                bar.update(len(batch))
        return texts

    def _batches(self, requests: Sequence[Instance], alike: list[int]) -> list[list[int]]:
        """Group the indices of requests into batches of similar length."""
        order = sorted(alike, key=lambda i: len(requests[i].arguments[0]), reverse=True)
        return [order[start : start + evaluator.ROWS] for start in range(0, len(order), evaluator.ROWS)]


def sampling(settings: Mapping[str, Any], *, seed: int = 0) -> Sampling:
    """Translate a task's `generation_kwargs` into sampling settings.

    Known keys: until, max_gen_toks, do_sample, temperature, top_k, top_p, min_p, repetition_penalty.

    Raises:
        UserError: A key is unknown, or a value is out of range.
    """
    known = {"until", "do_sample", "temperature", *_LENGTHS, *_CHOICES}
    for name, value in settings.items():
        if name not in known and _NEUTRAL.get(name) != value:
            raise UserError(f"generation_kwargs: lmjax has no {name}={value}; it has {', '.join(sorted(known))}")
    temperature, drawn = settings.get("temperature"), settings.get("do_sample")
    if drawn is None:
        drawn = bool(temperature)
    temperature = 1.0 if temperature is None else float(temperature)
    until = settings.get("until") or ()
    return Sampling(
        max_tokens=int(next((settings[name] for name in _LENGTHS if settings.get(name) is not None), MAX_TOKENS)),
        temperature=temperature if drawn else 0.0,
        stop=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
        seed=seed,
        **{name: settings[name] for name in _CHOICES if settings.get(name) is not None},
    )


def command() -> int:
    """Run the harness's own command with the arguments of this process.

    It then accepts `--model lmjax`.
    """
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
    return 0
