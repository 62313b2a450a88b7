"""What a trained folder knows: held-out accuracy question by question, format, and the perplexity of dialogues."""

from __future__ import annotations

import math
from typing import Any

import torch
from tasks import Task

from psychecore.data.packing import pack, plan_micro_batches
from psychecore.evaluate.choice import evaluate_choice
from psychecore.model.pretrained import load_model
from psychecore.model.products import fast_dtype
from psychecore.rollout.sampler import Sampler
from psychecore.rollout.sampling import SamplingParams
from psychecore.text.tokenizer import load_tokenizer
from psychecore.train.token_logprobs import batch_logprobs

NEW_TOKENS = 40


def examine(folder: str, task: Task) -> dict[str, Any]:
    """Greedy answers to the held-out sets (`right` has a digit a question, for paired differences) and perplexity."""
    model, tokenizer = load_model(folder, fast_dtype(torch.device("cpu"))), load_tokenizer(folder)
    sampler = Sampler(model, tokenizer, max_slots=64, max_length=640)
    heldout = {}
    for name, questions in task.heldout.items():
        report, predictions = evaluate_choice(
            sampler, questions, SamplingParams(temperature=0, max_new_tokens=NEW_TOKENS)
        )
        print(f"  {name:<18} {report}", flush=True)
        row = {key: value for key, value in report.to_row().items() if key != "by_kind"}
        heldout[name] = row | {"right": "".join(str(int(item.accuracy)) for item in predictions)}
    items = [tokenizer.render_chat(row.messages) for row in task.heldout_dialogues]
    total, count = 0.0, 0
    with torch.no_grad():
        for chunk in plan_micro_batches([len(item.ids) for item in items], 4096):
            logprobs_R, _ = batch_logprobs(model, pack([(items[i].ids, items[i].loss_mask) for i in chunk]))
            total, count = total - float(logprobs_R.double().sum()), count + len(logprobs_R)
    perplexity = math.exp(total / count)
    print(f"  {'dialogues':<18} perplexity {perplexity:.2f} over {count} tokens", flush=True)
    return {"heldout": heldout, "perplexity": round(perplexity, 3), "perplexity_tokens": count}
