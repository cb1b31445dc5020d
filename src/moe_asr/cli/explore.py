"""`moe-asr explore RUN AUDIO`: one recording, and what the routers decide about it, as an interactive page."""

from moe_asr.config.pages import ExploreConfig

CONFIG = ExploreConfig


def run(config: ExploreConfig) -> None:
    from pathlib import Path

    from moe_asr.analysis.explorer import explore
    from moe_asr.analysis.forcing import forced
    from moe_asr.errors import InputError
    from moe_asr.features.audio import read_audio, read_header
    from moe_asr.runs.directory import write_atomically
    from moe_asr.runs.recognizer import Recognizer

    source = Path(config.audio)
    if config.out is None and not Path(config.run).is_dir():
        raise InputError(f"{config.run} is a file; say with out=FILE.html where the page goes.")
    file = Path(config.out) if config.out else Path(config.run) / "explorer" / f"{source.stem}.html"
    recognizer = Recognizer.load(config.run, config.device, config.precision, config.experts)
    recognizer = forced(recognizer, config.routing)
    whole = read_header(source).seconds
    seconds = min(config.seconds, max(whole - config.start, 0.0))
    audio = read_audio(source, recognizer.config.features.sample_rate, config.start, seconds)
    context = "full context" if config.decode.chunk is None else f"chunks of {config.decode.chunk} frames"
    about = [f"{source.name}, heard by {config.run}: {config.decode.mode}, {context}.", *audio.notes]
    if seconds < whole:
        part = f"{config.start:g} to {config.start + seconds:.4g} s of {whole:.4g} s"
        about.append(f"The page holds {part}: start= and seconds= choose another part.")
    if config.routing.choose:
        about.append(f"Experts are chosen by routing.choose={config.routing.choose}, not by the routers.")
    page = explore(recognizer, audio, source.stem, config.decode, about)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda written: written.write(page))
    print("\n".join(about[1:]) or f"{seconds:.4g} s of audio")
    print(f"page: {file} ({len(page.encode()) / 1e6:.1f} MB, audio included)")
