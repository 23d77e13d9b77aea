"""Masked-token and next-passage prediction (BERT).

Shapes: B rows, T positions, P places that are predicted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lmjax.config import UserError
from lmjax.data.batches import masking
from lmjax.data.tokenizer import Tokenizer
from lmjax.inference.generate import NotFinite
from lmjax.objectives import examples, losses
from lmjax.objectives.objective import Loss, Objective
from lmjax.objectives.text_samples import MaskedSamples

SHOWN, GUESSES = 3, 5  # rows of the sample, tokens for a gap


@dataclass(frozen=True, eq=False)
class Masked(Objective):
    """Masked language model and next sentence (Devlin et al. 2019)."""

    samples: MaskedSamples

    samples_type = MaskedSamples
    prompt = "Return a [MASK] of the file."

    def example_prompt(self) -> str:
        """Return the first words of the validation split, one of them masked."""
        words = examples.beginning(self.samples.example()).split()
        return " ".join([*words[:2], "[MASK]", *words[3:]]) if len(words) > 2 else self.prompt

    def example(self) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return positional and named arrays that the model accepts."""
        one = jnp.zeros((1, 1), jnp.int32)
        return (one,), {"kinds_BT": one, "real_BT": one}

    def loss(
        self, params: Any, batch: Mapping[str, Array], *, rng: Array | None = None, carry: Any = None, train: bool
    ) -> Loss:
        """Return the loss sum, the weight sum and further sums of a batch."""
        return Loss(*losses.masked(self.model, params, batch, rng=rng, train=train))

    def by_row(self, params: Any, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return the cross-entropy sum (B) of the masked tokens and the weight (B) of each row."""
        return losses.masked_by_row(self.model, params, batch)

    def scores(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return `val_loss`, which is the loss of training, and loss and accuracy of each task.

        They are means over the masked tokens, and over the rows for the next passage.
        """
        mean = {name: totals[name] / totals["weight"] for name in ("loss", "masked_loss", "masked_accuracy")}
        if "next_rows" in totals:
            mean |= {name: totals[name] / totals["next_rows"] for name in ("next_loss", "next_accuracy")}
        return {f"val_{name}": value for name, value in mean.items()}

    def baselines(self) -> dict[str, float]:
        """Return the accuracy of constant answers.

        For masked tokens the answer is the most frequent token of the training text, for the next passage the more
        frequent of the two answers.
        """
        store = self.samples.store
        counts = np.zeros(store.tokenizer.vocab_size, np.int64)
        for tokens in store.sources:
            counts += np.bincount(np.asarray(tokens.ids), minlength=len(counts))
        counts[sorted(store.tokenizer.special_ids)] = 0
        most, hits, seen, follows, rows = int(counts.argmax()), 0.0, 0.0, 0.0, 0.0
        for batch in self.samples.validation():
            hits += float(batch["weights_BP"][batch["targets_BP"] == most].sum())
            seen += float(batch["weights_BP"].sum())
            follows += float(batch["rows_B"][batch["next_B"] == 0].sum())
            rows += float(batch["rows_B"].sum())
        share = follows / rows
        return {"most_frequent_token_masked_accuracy": hits / seen, "constant_next_accuracy": max(share, 1 - share)}

    def sample(self, params: Any) -> str:
        """Return rows of the validation split with the tokens that the model predicts."""
        batch = {name: array[:SHOWN] for name, array in next(iter(self.samples.validation())).items()}
        settings: dict[str, Any] = {name: batch[name] for name in ("kinds_BT", "real_BT", "places_BP")}
        outputs: Any = jax.jit(self.model.apply)({"params": params}, batch["inputs_BT"], **settings)
        guesses_BP = np.asarray(jnp.argmax(outputs.logits_BPV, axis=-1))
        lines = []
        for row in range(len(guesses_BP)):
            used = batch["weights_BP"][row] > 0
            lines.append(self.samples.row_text(batch, row))
            pairs = zip(guesses_BP[row, used].tolist(), batch["targets_BP"][row, used].tolist(), strict=True)
            lines.append("  fills in: " + ", ".join(self._guess(guess, target) for guess, target in pairs))
        return "\n".join(lines)

    def answer(self, params: Any, prompt: str, *, tokenizer: Tokenizer, **settings: Any) -> str:
        """Return the most probable tokens for each [MASK] in the prompt.

        Raises:
            UserError: The prompt has no [MASK], or is too long.
            NotFinite: The logits are not finite.
        """
        facts = masking.facts(tokenizer)
        pieces = tokenizer.encode_batch(prompt.split("[MASK]"))
        ids = [facts.cls, *pieces[0], *(id for piece in pieces[1:] for id in (facts.mask, *piece)), facts.sep]
        places = [place for place, id in enumerate(ids) if id == facts.mask]
        if not places:
            raise UserError("this model fills gaps: write [MASK] where a word is missing in the prompt")
        if len(ids) > self.config.model.context:
            raise UserError(f"the prompt has {len(ids)} tokens, model.context is {self.config.model.context}")
        row: Any = np.full((1, self.config.model.context), facts.pad, np.int32)
        row[0, : len(ids)] = ids
        real_BT = (np.arange(row.shape[1]) < len(ids)).astype(np.int32)[None]
        kinds_BT = np.zeros_like(row)
        named: dict[str, Any] = {"kinds_BT": kinds_BT, "real_BT": real_BT, "places_BP": np.asarray([places])}
        outputs: Any = self.model.apply({"params": params}, row, **named)
        chances_PV = np.asarray(jax.nn.softmax(outputs.logits_BPV[0]))
        if not np.isfinite(chances_PV).all():
            raise NotFinite()
        lines = []
        for number, chances_V in enumerate(chances_PV, 1):
            best = np.argsort(-chances_V)[:GUESSES].tolist()
            lines.append(f"[MASK] {number}: " + ", ".join(f"{tokenizer.token(i)} {chances_V[i]:.1%}" for i in best))
        return "\n".join(lines)

    def _guess(self, guess: int, target: int) -> str:
        token = self.samples.store.tokenizer.token
        return token(guess) if guess == target else f"{token(guess)} (was {token(target)})"
