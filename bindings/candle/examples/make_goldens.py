#!/usr/bin/env python3
"""Makes the answers that the examples' tests expect, by implementations of other people.

    python3 -m venv .venv && .venv/bin/pip install torch transformers gguf ctranslate2 av
    .venv/bin/python fetch_models.py && .venv/bin/python examples/make_goldens.py [smollm2] [minilm] [whisper]

smollm2 and minilm are Hugging Face's transformers on PyTorch in float32, the former on the weights of the GGUF file,
dequantised; whisper is CTranslate2 in float32 with the features of transformers and the audio as FFmpeg resamples it.
Each file names the versions that made it.
"""

import importlib.metadata
import json
import sys
import warnings
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from fetch_models import cache  # noqa: E402

PROMPT = "Explain in a few sentences why the sky is blue and why sunsets are red."
TOKENS = 64

SENTENCES = [
    "The cat sits on the mat and watches the rain.",
    "A kitten is looking at the rainy weather from a rug.",
    "Interest rates were raised by the central bank on Thursday.",
    "How do I compile a Rust program without a network connection?",
    "Offline builds with cargo need the crates to be vendored first.",
    "Rain.",
    "The attention of a transformer weighs every value by the similarity of its key to the query, so that a word may "
    "take its meaning from others that stand far away in the same sentence or paragraph.",
]


def smollm2() -> dict:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = cache() / "smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    prompt = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    sequence, margins = list(ids), []
    with torch.no_grad():
        past, step = None, torch.tensor([ids])
        for _ in range(TOKENS):
            result = model(step, past_key_values=past, use_cache=True)
            past, logits = result.past_key_values, result.logits[0, -1]
            best = torch.topk(logits, 2)
            margins.append((best.values[0] - best.values[1]).item())
            sequence.append(best.indices[0].item())
            step = best.indices[:1].reshape(1, 1)
    new = sequence[len(ids) :]
    return {
        "made by": versions("torch", "transformers", "gguf"),
        "prompt": prompt,
        "prompt_ids": ids,
        "ids": new,
        "text": tokenizer.decode(new),
        "smallest margin of logits": min(margins),
    }


def minilm() -> dict:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = cache() / "minilm"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    embeddings = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    similarities = embeddings @ embeddings.T
    return {
        "made by": versions("torch", "transformers"),
        "sentences": SENTENCES,
        "lengths": mask.sum((1, 2)).tolist(),
        "similarities": [[round(x, 7) for x in row] for row in similarities.tolist()],
    }


def quietest(audio: np.ndarray) -> int:
    """Where 30 s that begin the audio are best cut: amid the tenth of a second of least energy in the last 6."""
    block = 1600
    energies = [float((audio[at : at + block] ** 2).sum()) for at in range(24 * 16000, 30 * 16000, block)]
    return 24 * 16000 + int(np.argmin(energies)) * block + block // 2


def whisper() -> dict:
    import av
    import ctranslate2
    from tokenizers import Tokenizer
    from transformers import WhisperFeatureExtractor

    folder = cache() / "whisper"
    resampler = av.AudioResampler(format="flt", layout="mono", rate=16000)
    with av.open(str(folder / "two_cities.wav")) as file:
        frames = [frame for part in [*file.decode(audio=0), None] for frame in resampler.resample(part)]
    audio = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    model = ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="float32", intra_threads=1)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    extractor = WhisperFeatureExtractor(feature_size=80)
    prompt = [tokenizer.token_to_id(token) for token in ("<|startoftranscript|>", "<|notimestamps|>")]
    windows, start = [], 0
    while start < len(audio):
        rest = audio[start:]
        end = len(audio) if len(rest) <= 30 * 16000 else start + quietest(rest)
        features = extractor(audio[start:end], sampling_rate=16000, return_tensors="np")["input_features"]
        view = ctranslate2.StorageView.from_array(np.ascontiguousarray(features))
        ids = model.generate(view, [prompt], beam_size=1, max_length=224)[0].sequences_ids[0]
        windows.append({"start": start, "ids": ids, "text": tokenizer.decode(ids)})
        start = end
    return {
        "made by": versions("ctranslate2", "transformers", "av"),
        "prompt_ids": prompt,
        "windows": windows,
    }


def versions(*packages: str) -> dict:
    return {package: importlib.metadata.version(package) for package in packages}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name in sys.argv[1:] or ["smollm2", "minilm", "whisper"]:
        golden = {"smollm2": smollm2, "minilm": minilm, "whisper": whisper}[name]()
        text = json.dumps(golden, indent=1, ensure_ascii=False)
        (HERE / name / "golden.json").write_text(text + "\n")
        print(name, text[-600:])
