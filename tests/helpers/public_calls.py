"""What another program does with an exported directory: ``transformers`` alone, nothing of ovtrain.

    python public_calls.py FOLDER CALLS.pt OUT.pt AGAIN

CALLS.pt: {name: keyword arguments of the model}; OUT.pt: {name: {"tokens", "pooled"} or the error's
type and words}, and under "about" the version, the loading report and an image processor's output;
AGAIN: the model, saved in parts.
"""

import sys

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel


def main(folder: str, calls: str, out: str, again: str) -> None:
    model, report = AutoModel.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    found = {name: answer(model, given) for name, given in torch.load(calls).items()}
    model.save_pretrained(again, max_shard_size="400KB")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    fresh = AutoModel.from_config(config, trust_remote_code=True)
    picture = np.arange(90 * 70 * 3, dtype=np.uint8).reshape(90, 70, 3)
    processor = AutoImageProcessor.from_pretrained(folder)
    found["about"] = {
        "version": transformers.__version__,
        "report": {name: sorted(map(str, entries)) for name, entries in report.items()},
        "modules": sorted(name for name in sys.modules if name.split(".")[0] == "ovtrain"),
        "pixels": processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"],
        "fresh": {name: tensor.std() for name, tensor in fresh.state_dict().items()},
        "trained": trained(model, torch.load(calls)["image"]),
        "frozen": frozen(model, torch.load(calls)["image"]),
    }
    torch.save(found, out)


def answer(model, given) -> dict:
    try:
        with torch.no_grad():
            output = model.eval()(**given)
    except ValueError as error:
        return {"error": str(error)}
    return {
        "tokens": output.last_hidden_state,
        "pooled": output.pooler_output,
        "states": output.hidden_states,
    }


def trained(model, given) -> dict[str, torch.Tensor]:
    """A projection's gradient, with activations kept and recomputed."""
    found = {}
    for name in ("kept", "recomputed"):
        model.train().zero_grad()
        if name == "recomputed":
            model.gradient_checkpointing_enable()
        model(**given).pooler_output.sum().backward()
        found[name] = model.encoder.layers[0].self_attn.q_proj.weight.grad.clone()
    return found


def frozen(model, given) -> dict[str, bool]:
    """Train one projection behind a frozen start, recomputed -> whether its gradient is missing."""
    model.zero_grad()
    model.requires_grad_(False)
    projection = model.encoder.layers[1].self_attn.q_proj
    projection.requires_grad_(True)
    model(**given).pooler_output.sum().backward()
    return {"q_proj": projection.weight.grad is None or not projection.weight.grad.any()}


if __name__ == "__main__":
    main(*sys.argv[1:])
