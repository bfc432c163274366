#!/usr/bin/env python3
"""Is what was emulated true? To be run on a Mac after `make build BACKEND=metal`, with nothing else to do there.

  confirm_metal.py
  confirm_metal.py --model model.gguf --plan plan.json --name m4-max

The kernels are compared with the CPU's (test-backend-ops, kvtuner-test-writes, kvtuner-test-gpu-attention), the KLD of
the plan with that of the same plan on the CPU, and its speed with that of an f16 cache. Without a model it is
SmolLM2-135M with a plan of 4.5 bits. The page that is written goes to configs/metal/NAME.md: send it as a change.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from build_folders import build_folder

from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.files import atomicfile
from kvtuner_gguf.files.assets import fetch_model, fetch_text

ROOT = Path(__file__).parents[1]
PLAN = ROOT / "configs" / "smollm2-135m-4.5.json"
DEVICE = "MTL0"
ALL_LAYERS = ("-ngl", "99")
ON_CPU = ("-ngl", "0", "--device", "none")  # with a device of none the CPU multiplies long prompts, too
DEPTHS = "0,4096,16384"
TYPES = "(iq4_nl|q[23]_nl)"
CASES = (
    ("SET_ROWS", f"type_dst={TYPES}"),
    ("GET_ROWS", f"type={TYPES}"),
    ("CPY", TYPES),
    ("FLASH_ATTN_EXT", "hsk=(64|128),.*type_K=(f16|q8_0|q4_0)"),
)
PASSED = re.compile(r"(\d+)/(\d+) tests passed")
LEFT_OUT = re.compile(r"(^|\s)0 cases|(?<!\d)(?!0\b)\d+ not supported")
MEAN_KLD = re.compile(r"Mean\s+KLD:\s+(\S+)")


@dataclass(frozen=True)
class Check:
    """One line of the page: what was run, whether it was right, and what it says."""

    what: str
    is_right: bool
    says: str


def run(command: Sequence[object]) -> tuple[int, str]:
    """The exit status, and all that was printed."""
    text = [str(part) for part in command]
    print("$", *text, flush=True)
    done = subprocess.run(text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout.decode(errors="replace")


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing was printed")


def kernels(folder: Path) -> list[Check]:
    """What the device computes against what the CPU does."""
    checks = []
    for operation, cases in CASES:
        status, text = run([folder / "bin" / "test-backend-ops", "test", "-b", DEVICE, "-o", operation, "-p", cases])
        found = PASSED.findall(text)
        says = f"{found[-1][0]} of {found[-1][1]} cases" if found else last_line(text)
        is_right = status == 0 and bool(found) and int(found[-1][0]) > 0
        checks.append(Check(f"test-backend-ops {operation}", is_right, says))
    for program in ("kvtuner-test-writes", "kvtuner-test-gpu-attention"):
        status, text = run([folder / program, DEVICE])
        says = last_line(text)
        checks.append(Check(program, status == 0 and not LEFT_OUT.search(says), says))
    return checks


def mean_kld(folder: Path, model: Path, plan: Path, where: Sequence[str], logits: Path) -> float | None:
    """Of the plan against an f16 cache, both with layers ``where`` says; None where a program fails."""
    program = [folder / "bin" / "llama-perplexity", "-m", model, "-f", fetch_text("encyclopedia"), "-c", "512"]
    common = [*program, "--chunks", "8", "-fa", "on", *where, "--kl-divergence-base", logits]
    if run([*common, "--kv-config", "none"])[0]:
        return None
    found = MEAN_KLD.search(run([*common, "--kl-divergence", "--kv-config", plan])[1])
    return float(found[1]) if found else None


def quality(folder: Path, model: Path, plan: Path) -> Check:
    """The plan on the device loses what it loses on the CPU, within a fifth."""
    with tempfile.TemporaryDirectory() as made:
        on_device, on_cpu = (
            mean_kld(folder, model, plan, where, Path(made) / "logits") for where in (ALL_LAYERS, ON_CPU)
        )
    if on_device is None or on_cpu is None:
        return Check("mean KLD of the plan", False, "llama-perplexity failed")
    is_right = abs(on_device - on_cpu) <= 0.2 * on_cpu + 0.0005
    return Check("mean KLD of the plan", is_right, f"{on_device:.4f}, on the CPU {on_cpu:.4f}")


def speeds(folder: Path, model: Path, plan: str) -> list[tuple[str, float]]:
    """Tokens per second by test: prefill of 512 tokens and decode of 64 at each depth."""
    tests = ["-p", "512", "-n", "64", "-d", DEPTHS, "-fa", "1", *ALL_LAYERS, "--kv-config", plan, "-o", "json"]
    status, text = run([folder / "bin" / "llama-bench", "-m", model, *tests])
    begin = text.find("[\n")
    if status or begin < 0:
        return []
    rows, _ = json.JSONDecoder().raw_decode(text[begin:])
    return [(f"{'pp512' if row['n_prompt'] else 'tg64'} @ {row['n_depth']}", row["avg_ts"]) for row in rows]


def machine() -> str:
    """The chip, as macOS calls it, and the system."""
    status, chip = run(["sysctl", "-n", "machdep.cpu.brand_string"]) if sys.platform == "darwin" else (1, "")
    return f"{platform.processor() if status else chip.strip()}, {platform.platform()}"


def page(name: str, checks: list[Check], plain: list[tuple[str, float]], planned: list[tuple[str, float]]) -> str:
    """The results as Markdown."""
    commit = run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"])[1].strip()
    lines = [f"# {name}", "", f"{machine()}, commit {commit}.", ""]
    lines += ["| | | |", "|---|---|---|"]
    lines += [f"| {check.what} | {'right' if check.is_right else '**wrong**'} | {check.says} |" for check in checks]
    lines += ["", "| tokens per second | f16 | plan | ratio |", "|---|---|---|---|"]
    of_plan = dict(planned)
    for test, speed in plain:
        other = of_plan.get(test, float("nan"))
        lines.append(f"| {test} | {speed:.1f} | {other:.1f} | {other / speed:.2f} |")
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="default: SmolLM2-135M, fetched")
    parser.add_argument("--plan", type=Path, default=PLAN)
    parser.add_argument("--name", default=re.sub(r"\W+", "-", platform.node().lower()), help="of the page")
    parser.add_argument("--build", type=Path, default=build_folder("metal"), help="default: %(default)s")
    args = parser.parse_args()
    if not (args.build / "bin" / "test-backend-ops").exists():
        raise KvtunerError(f"no test-backend-ops in {args.build}: run 'make build BACKEND=metal'")
    model = args.model or fetch_model("smollm2-135m")
    checks = [*kernels(args.build), quality(args.build, model, args.plan)]
    text = page(args.name, checks, speeds(args.build, model, "none"), speeds(args.build, model, str(args.plan)))
    made = ROOT / "configs" / "metal" / f"{args.name}.md"
    atomicfile.write_text(made, text)
    print(text)
    print(f"written to {made}")
    return 0 if all(check.is_right for check in checks) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KvtunerError as err:
        sys.exit(str(err))
