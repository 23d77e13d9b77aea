"""Masked-token and next-passage prediction (BERT).

Shapes: B rows, T positions, P places that are predicted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax.config import Config, MaskedConfig, UserError
from lmjax.data.batches import masking
from lmjax.data.store.store import Store
from lmjax.data.tokenizer import Tokenizer
from lmjax.models import registry
from lmjax.objectives import losses
from lmjax.objectives.objective import Batch, Loss
from lmjax.objectives.text import TextObjective, sample_order

SHOWN, GUESSES = 3, 5  # rows of the sample, tokens for a gap


@dataclass(frozen=True, eq=False)
class Masked(TextObjective):
    """Masked language model and next sentence (Devlin et al. 2019)."""

    prompt = "Return a [MASK] of the file."

    @classmethod
    def build(cls, config: Config, store: Store) -> "Masked":
        """Build the objective from a resolved configuration and its prepared data."""
        masking.facts(store.tokenizer)  # a tokenizer that cannot do it is answered here
        return cls(config, store, registry.build(config.model), sample_order(config, store))

    @property
    def _objective(self) -> MaskedConfig:
        assert isinstance(self.config.objective, MaskedConfig)
        return self.config.objective

    @cached_property
    def _facts(self) -> masking.Facts:
        return masking.facts(self.store.tokenizer)

    def example(self) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return positional and named arrays that the model accepts."""
        one = jnp.zeros((1, 1), jnp.int32)
        return (one,), {"kinds_BT": one, "real_BT": one}

    def arrays(self, ids: np.ndarray) -> Batch:
        """Return the rows (B, ...) of the samples `ids`."""
        return masking.masked(
            self.store.sources,
            ids,
            order=self.order,
            context=self.config.model.context,
            tokenizer_facts=self._facts,
            config=self._objective,
            seed=self.config.seed,
        )

    def blank(self, rows: int) -> Batch:
        """Return rows of zeros with the names, shapes and types of `arrays`."""
        context = self.config.model.context
        whole, some = (rows, context), (rows, masking.predictions(context, self._objective.rate))
        shapes = {"inputs_BT": whole, "kinds_BT": whole, "real_BT": whole, "places_BP": some, "targets_BP": some}
        integers = {name: np.zeros(shape, np.int32) for name, shape in (shapes | {"next_B": (rows,)}).items()}
        return integers | {"weights_BP": np.zeros(some, np.float32)}

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        """Return the loss sum, the weight sum and further sums of a batch."""
        return Loss(*losses.masked(self.model, params, batch, rng=rng, train=train))

    def by_row(self, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Of the masked tokens only."""
        return losses.masked_by_row(self.model, params, batch)

    def validation(self) -> Iterator[Batch]:
        """Yield the complete validation split as microbatches."""
        return masking.validation(
            self.store.validation,
            context=self.config.model.context,
            microbatch=self.config.batch.microbatch,
            tokenizer_facts=self._facts,
            config=self._objective,
        )

    def scores(self, totals: Mapping[str, float]) -> dict[str, float]:
        """`val_loss` is the sum of both losses; the others each by itself."""
        names = ("masked_loss", "masked_accuracy", "next_loss", "next_accuracy")
        mean = {name: totals[name] / totals["weight"] for name in ("loss", *names) if name in totals}
        return {f"val_{name}": value for name, value in mean.items()}

    def baselines(self) -> dict[str, float]:
        """How often the training text's most frequent token is the masked one, and the more frequent answer right."""
        counts = np.zeros(self.store.tokenizer.vocab_size, np.int64)
        for tokens in self.store.sources:
            counts += np.bincount(np.asarray(tokens.ids), minlength=len(counts))
        counts[sorted(self.store.tokenizer.special_ids)] = 0
        most, hits, seen, follows, rows = int(counts.argmax()), 0.0, 0.0, 0.0, 0.0
        for batch in self.validation():
            hits += float(batch["weights_BP"][batch["targets_BP"] == most].sum())
            seen += float(batch["weights_BP"].sum())
            follows += float(batch["rows_B"][batch["next_B"] == 0].sum())
            rows += float(batch["rows_B"].sum())
        share = follows / rows
        return {"most_frequent_token_masked_accuracy": hits / seen, "constant_next_accuracy": max(share, 1 - share)}

    def sample(self, params: Any) -> str:
        """Some rows of the validation split with what the model fills in."""
        batch = {name: array[:SHOWN] for name, array in next(iter(self.validation())).items()}
        settings: dict[str, Any] = {name: batch[name] for name in ("kinds_BT", "real_BT", "places_BP")}
        outputs: Any = jax.jit(self.model.apply)({"params": params}, batch["inputs_BT"], **settings)
        guesses_BP = np.asarray(jnp.argmax(outputs.logits_BPV, axis=-1))
        lines = []
        for row in range(len(guesses_BP)):
            used = batch["weights_BP"][row] > 0
            lines.append(self.row_text(batch, row))
            pairs = zip(guesses_BP[row, used].tolist(), batch["targets_BP"][row, used].tolist(), strict=True)
            lines.append("  fills in: " + ", ".join(self._guess(guess, target) for guess, target in pairs))
        return "\n".join(lines)

    def answer(self, params: Any, prompt: str, *, tokenizer: Tokenizer, **settings: Any) -> str:
        """The likeliest tokens for each [MASK] in the prompt. UserError: there is none, or the prompt is too long."""
        known = masking.facts(tokenizer)
        pieces = tokenizer.encode_batch(prompt.split("[MASK]"))
        ids = [known.cls, *pieces[0], *(id for piece in pieces[1:] for id in (known.mask, *piece)), known.sep]
        places = [place for place, id in enumerate(ids) if id == known.mask]
        if not places:
            raise UserError("this model fills gaps: write [MASK] where a word is missing in the prompt")
        if len(ids) > self.config.model.context:
            raise UserError(f"the prompt has {len(ids)} tokens, model.context is {self.config.model.context}")
        row: Any = np.zeros((1, self.config.model.context), np.int32)
        row[0, : len(ids)] = ids
        real_BT = (np.arange(row.shape[1]) < len(ids)).astype(np.int32)[None]
        named: dict[str, Any] = {"kinds_BT": np.zeros_like(row), "real_BT": real_BT, "places_BP": np.asarray([places])}
        outputs: Any = self.model.apply({"params": params}, row, **named)
        chances_PV = np.asarray(jax.nn.softmax(outputs.logits_BPV[0]))
        lines = []
        for number, chances_V in enumerate(chances_PV, 1):
            best = np.argsort(-chances_V)[:GUESSES].tolist()
            lines.append(f"[MASK] {number}: " + ", ".join(f"{tokenizer.token(i)} {chances_V[i]:.1%}" for i in best))
        return "\n".join(lines)

    def _guess(self, guess: int, target: int) -> str:
        token = self.store.tokenizer.token
        return token(guess) if guess == target else f"{token(guess)} (was {token(target)})"

    def row_text(self, rows: Batch, row: int) -> str:
        """Return a row of a batch as text."""
        return self.store.tokenizer.decode(rows["inputs_BT"][row][rows["real_BT"][row] > 0])
