"""lm-evaluation-harness on any model that lmjax opens: importing this file registers the model `lmjax` there.

    python -m lmjax.lm_eval --model lmjax --model_args path=MODEL --tasks lambada_openai     all that lm_eval takes
    lm_eval.simple_evaluate(model="lmjax", model_args="path=MODEL", tasks=["lambada_openai"])
    lm_eval.simple_evaluate(model=harness.Harness(language_model), tasks=["lambada_openai"])

What is asked, and what the answers are worth, is the harness's; the answers are those of `evaluate.scoring` and
`generate`. lm_eval finds no models by itself in other packages, so its bare command does not know this one.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from lmjax import pretrained
from lmjax.config import UserError
from lmjax.evaluate import evaluator, scoring
from lmjax.generate import LanguageModel, Sampling

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError:
    raise UserError("lm-evaluation-harness is not installed: pip install 'lmjax[evaluate]'") from None

MAX_TOKENS = 256  # of a continuation whose request names no number, as with the harness's own models
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_CHOICES = ("top_k", "top_p", "min_p", "repetition_penalty")
_NEUTRAL = {"num_beams": 1}  # settings that lmjax has not, with the value that changes nothing


@register_model("lmjax")
class Harness(LM):
    """A model as the harness asks it.

    path: a run, a Hugging Face folder or a .gguf file, or a model that is loaded. checkpoint, dtype: as in
    `pretrained.load`. batch_size, max_batch_size, device: the harness hands them over; lmjax chooses by itself.
    UserError: no such model.
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
        """For each (context, continuation) its log-probability in nats, and whether greedy decoding gives it."""
        texts = [request.args for request in requests]
        asked = [scoring.encode(self.lm, *text) for text in texts]
        with tqdm(total=len(asked), desc="lmjax: log-probabilities", disable=disable_tqdm or None) as bar:

            def take(found: Mapping[int, scoring.Found]) -> None:
                for i, answer in found.items():
                    self.cache_hook.add_partial("loglikelihood", texts[i], (answer.logprob, answer.greedy))
                bar.update(len(found))

            return [(answer.logprob, answer.greedy) for answer in scoring.score(self.lm, asked, take=take)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """For each (text,) its log-probability in nats, every token predicted once, in windows of the context."""
        windows = [scoring.rolling(self.lm, *request.args) for request in requests]
        whose = [i for i, of_one in enumerate(windows) for _ in of_one]
        sums = [0.0] * len(requests)
        with tqdm(total=len(whose), desc="lmjax: windows of texts", disable=disable_tqdm or None) as bar:

            def take(found: Mapping[int, scoring.Found]) -> None:
                bar.update(len(found))

            found = scoring.score(self.lm, [window for of_one in windows for window in of_one], take=take)
        for i, answer in zip(whose, found, strict=True):
            sums[i] += answer.logprob
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """For each (context, settings) what follows up to a stop of its `until`, greedily unless `sampling` draws.

        The settings are those of `sampling`. A context loses its beginning where it leaves too little room.
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
        """The numbers of requests, those of about one length together."""
        order = sorted(alike, key=lambda i: len(requests[i].arguments[0]), reverse=True)
        return [order[start : start + evaluator.ROWS] for start in range(0, len(order), evaluator.ROWS)]


def sampling(settings: Mapping[str, Any], *, seed: int = 0) -> Sampling:
    """What a task's `generation_kwargs` ask for: until, max_gen_toks, do_sample, temperature, top_k, top_p, min_p and
    repetition_penalty.

    UserError: something else, or a value out of range.
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
    """The harness's own command, with the words of this process, where `--model lmjax` is known."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
    return 0
