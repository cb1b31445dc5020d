"""What results.json says, for the terminal. Nothing heavy is imported: a finished run answers at once."""

from typing import Any

from moe_asr.config.score import FEWEST_SPEAKERS, Unit
from moe_asr.measure.expert_use import Alarm, expert_table


def results_table(results: dict[str, Any]) -> str:
    """What a run's results say, for the terminal."""
    lines = []
    for part in ("dev", "test"):
        for name, result in results.get(part, {}).items():
            unit = Unit(result["unit"])
            interval = result[f"{unit.rate}_ci95"]
            between = f"[{100 * interval[0]:.2f}, {100 * interval[1]:.2f}]" if interval else "no interval"
            others = [k for k in ("wer", "cer", "per") if k in result and k != unit.rate]
            also = "".join(f"  {k.upper()} {100 * result[k]:.2f} %" for k in others)
            decode = result["decode"]
            context = "full context" if decode["chunk"] is None else f"chunk {decode['chunk']}"
            context += "" if None in (decode["chunk"], decode["left"]) else f", left {decode['left']}"
            lines.append(
                f"{part}/{name:<10} {unit.rate.upper()} {100 * result[unit.rate]:.2f} % {between}{also}  "
                f"RTF {result['rtf']:.4f}  ({result['num_utterances']} utterances, "
                f"{result['num_tokens']} {unit.value}s; {decode['mode']}, {context}; {result['interval']['method']})"
            )
            if (shown := result.get("latency")) and shown["words"]:
                lines.append(
                    f"  words settle {shown['settled_p50']:.2f} s after they end (90 %: {shown['settled_p90']:.2f} s), "
                    f"first shown {shown['first_p50']:.2f} s, certain {shown['certain_p50']:.2f} s; "
                    f"{100 * shown['revised']:.1f} % revised; streamed at RTF {shown['stream_rtf']:.4f}"
                )
            few = 0 < (result["num_speakers"] or 0) < FEWEST_SPEAKERS
            for speaker, own in (result["per_speaker"] if few else {}).items():
                lines.append(f"  {speaker}: {100 * own[unit.rate]:.2f} % of {own['num_tokens']} {unit.value}s")
            if result["unreadable"]:
                lines.append(f"  {len(result['unreadable'])} utterances could not be read and count as deleted")
            if result["outside_tokenizer"]:
                lines.append(f"  {result['outside_tokenizer']} references hold text outside the tokenizer")
    if routing := results.get("routing"):
        lines.append(f"experts chosen by routing.choose={routing['choose']}, not by the routers of {routing['sites']}")
    if speed := next((r["speed"] for p in ("test", "dev") for r in results.get(p, {}).values()), None):
        lines.append(
            f"RTF on {speed['machine']}: {speed['threads']} threads, batches of {speed['batch']}, "
            f"{speed['warm_up']} warm-up, quartiles {', '.join(f'{q:.4f}' for q in speed['rtf_quartiles'])}"
        )
    if test := results.get("test", {}):
        name = list(test)[-1]
        if table := expert_table(test[name]["experts"], test[name].get("router_entropy", {})):
            lines.append(f"load of the experts on {name} in % (-: dead, !: over twice the even share):")
            lines += table
    lines += [f"alarm, {Alarm(**alarm)}" for alarm in results.get("alarms", ())]
    if "params_total" in results:
        lines.append(
            f"{results['params_total'] / 1e6:.2f} M parameters, {results['params_active'] / 1e6:.2f} M active; "
            f"trained in {results['train_seconds']:.0f} s"
        )
    return "\n".join(lines)
