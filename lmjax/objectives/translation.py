"""Sequence to sequence."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax.config import Config, TranslationConfig, UserError
from lmjax.data.batches import records
from lmjax.data.store.store import Store
from lmjax.data.tokenizer import Tokenizer
from lmjax.inference.beam import translate
from lmjax.models import registry
from lmjax.objectives import losses
from lmjax.objectives.objective import Batch, Loss
from lmjax.objectives.pairs import SHOWN, RecordsObjective


@dataclass(frozen=True, eq=False)
class Translation(RecordsObjective):
    """Source text to target text (Vaswani et al. 2017)."""

    prompt = "3 March 1987"

    @classmethod
    def build(cls, config: Config, store: Store) -> "Translation":
        """Build the objective from a resolved configuration and its prepared data."""
        order, plan = cls._parts(config, store)
        return cls(config, store, registry.build(config.model), order, plan)

    @property
    def _objective(self) -> TranslationConfig:
        assert isinstance(self.config.objective, TranslationConfig)
        return self.config.objective

    def example(self) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return positional and named arrays that the model accepts."""
        one = jnp.zeros((1, 1), jnp.int32)
        return (one, one), {}

    def arrays(self, ids: np.ndarray) -> Batch:
        """Return the rows (B, ...) of the samples `ids`."""
        return records.pairs(self.store, ids, order=self.order, plan=self.buckets)

    def blank(self, rows: int) -> Batch:
        """Return rows of zeros with the names, shapes and types of `arrays`."""
        shape, kinds = (rows, self.config.model.context), {"source_mask_BS": np.float32, "weights_BT": np.float32}
        names = ("source_BS", "source_mask_BS", "inputs_BT", "targets_BT", "weights_BT")
        return {name: np.zeros(shape, kinds.get(name, np.int32)) for name in names}

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        """Return the loss sum, the weight sum and further sums of a batch."""
        smoothing = self._objective.label_smoothing if train else 0.0  # measured without
        found = losses.translation(self.model, params, batch, rng=rng, label_smoothing=smoothing, train=train)
        return Loss(*found)

    def by_row(self, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return the loss sum (B) and the weight (B) of each row, without regularisation."""
        return losses.translation_by_row(self.model, params, batch)

    def scores(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return `val_loss` (nats per target token, without smoothing) and `val_accuracy`."""
        return super().scores(totals) | {"val_accuracy": totals["accuracy"] / totals["weight"]}

    def finish(self, params: Any) -> dict[str, float]:
        """Return `val_exact`, the share of exact translations, and sacrebleu's `val_bleu` (0 to 100)."""
        import sacrebleu

        found = list(self._translated(params, self._objective.scored))
        exact = sum(made == target for _, target, made in found) / len(found)
        made, targets = [made for *_, made in found], [target for _, target, _ in found]
        return {"val_exact": exact, "val_bleu": sacrebleu.corpus_bleu(made, [targets]).score}

    def sample(self, params: Any) -> str:
        """Return sample outputs of the model as text, for inspection."""
        lines = [f"{source}\n  -> {made}\n  ({target})" for source, target, made in self._translated(params, SHOWN)]
        return "\n".join(lines)

    def row_text(self, rows: Batch, row: int) -> str:
        """Return a row of a batch as text."""
        source = rows["source_BS"][row][rows["source_mask_BS"][row] > 0]
        target = rows["targets_BT"][row][rows["weights_BT"][row] > 0]
        return " -> ".join(self._text(ids) for ids in (source, target))

    def _translated(self, params: Any, most: int) -> Iterator[tuple[str, str, str]]:
        """Yield (source, target, translation) of validation records: all, or `most` of them evenly spread."""
        count = int(sum(map(len, self.buckets.validation)))
        wanted = set(np.linspace(0, count - 1, min(most, count) or count).astype(int).tolist()) if most else None
        number, end = 0, self.store.tokenizer.end_of_text or 0
        for batch in self.validation():
            rows = [row for row in range(len(batch["source_BS"])) if batch["weights_BT"][row].any()]
            if wanted is None or wanted & set(range(number, number + len(rows))):
                ids_BT = self._decode(params, batch["source_BS"], batch["source_mask_BS"], end)
                for row in rows:
                    if wanted is None or number + row in wanted:
                        target = batch["targets_BT"][row][batch["weights_BT"][row] > 0]
                        source = batch["source_BS"][row][batch["source_mask_BS"][row] > 0]
                        yield self._text(source), self._text(target), self._text(ids_BT[row])
            number += len(rows)

    def _decode(self, params: Any, source_BS: np.ndarray, mask_BS: np.ndarray, end: int) -> np.ndarray:
        objective = self._objective
        return translate(
            self.model,
            params,
            source_BS,
            mask_BS,
            begin=end,
            end=end,
            max_length=self.config.model.context,
            beams=objective.beam,
            length_penalty=objective.length_penalty,
        )

    def answer(self, params: Any, prompt: str, *, tokenizer: Tokenizer, **settings: Any) -> str:
        """Translate a prompt with `objective.beam` beams.

        Raises:
            UserError: The prompt is longer than `model.context`.
        """
        end, text = tokenizer.end_of_text or 0, prompt.lower() if self._lowercase else prompt
        ids = [*tokenizer.encode(text), end]
        if len(ids) > self.config.model.context:
            raise UserError(f"the prompt has {len(ids)} tokens, model.context is {self.config.model.context}")
        source_BS = np.asarray([ids], np.int32)
        made_T = self._decode(params, source_BS, np.ones(source_BS.shape, np.float32), end)[0]
        return tokenizer.decode(made_T[made_T != end])

    def _text(self, ids: np.ndarray) -> str:
        return self.store.tokenizer.decode(ids[ids != self.store.tokenizer.end_of_text])
