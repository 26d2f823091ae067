"""A page in the browser to draw your own words: `python launch/demo.py`, then http://127.0.0.1:7860/.

Student and teacher draw side by side. Without --checkpoint it is the student of runs/demo, where there is one, else the
embedded tiny teacher alone. Exit code 2: the command, a file or a value is wrong; 130: closed by Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from launch.common.cli import is_command, require_output_folder, run_command
from launch.common.parsers import parse_demo as parse

if is_command(__name__):
    parse(None)  # answers --help and a wrong command line before the imports below, which take seconds

from distill.inference.loading import load_sampling_model
from distill.inference.pipeline import AnyText2Pipeline
from distill.inference.prompt_file import Judge
from distill.inference.translate import make_translator
from launch.common.data_options import recipe_line
from launch.common.model_variants import with_variants
from launch.common.prompt_drawing import make_judge

HOST = "127.0.0.1"
DEMO = Path("runs/demo")


def demo(args: argparse.Namespace) -> int:
    """Serves the page until it is closed. Returns the exit code."""
    require_output_folder(args.out, "--out")
    for package in ("gradio", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"the page needs {package}: pip install 'anytext2-distill[demo]'")
    place = open_port(args.port)
    pipeline = make_pipeline(args)
    judge = find_judge(args.ocr, pipeline)
    # Gradio and matplotlib make folders when they are imported: in the page's own, when nothing is wrong any more.
    temporary = str(args.out.resolve() / "temporary")
    os.environ |= {"GRADIO_TEMP_DIR": temporary, "MPLCONFIGDIR": temporary, "GRADIO_ANALYTICS_ENABLED": "False"}
    os.environ["HF_HUB_OFFLINE"] = "1"
    from launch.page.drawing import PageDrawing
    from launch.page.view.server import make_app, serve
    from launch.page.view.wiring import build_page

    drawing = PageDrawing(pipeline, judge, args.out)
    app = make_app(build_page(drawing), args.out, HOST)
    print(f"the page: http://{HOST}:{place.getsockname()[1]}/ (Ctrl-C closes it)", flush=True)
    serve(app, place)
    return 0


def open_port(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1; port 0: any free one. Raises ValueError where the port cannot be had."""
    place = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((HOST, port))
        place.listen()
    except (OSError, OverflowError) as error:
        place.close()
        reason = getattr(error, "strerror", None) or "no port has this number"
        raise ValueError(f"--port {port}: {reason}; name another one, or 0 for any that is free") from error
    return place


def make_pipeline(args: argparse.Namespace) -> AnyText2Pipeline:
    """The pipeline of the command line, with a line on which model it is."""
    checkpoint = args.checkpoint
    if args.use_ddim_sampler:
        checkpoint = None
    elif checkpoint is None and (DEMO / "recipe.yaml").is_file():
        checkpoint = DEMO
    elif checkpoint is None:
        print(f"{DEMO} is not there, the page has the teacher alone; `make demo` trains a student", flush=True)
    model = load_sampling_model(
        checkpoint, args.config, args.overrides, args.precision, args.device, merge=args.merge, keep_teacher=True
    )
    model = with_variants(args, model)
    print(recipe_line(model.recipe, model.recipe_file), flush=True)
    translate = None if args.translate is None else make_translator(args.translate)
    return AnyText2Pipeline(model, translate=translate)


def find_judge(engine: str | None, pipeline: AnyText2Pipeline) -> Judge | None:
    """What reads the pictures. An engine that is named must be there; without a name, the usual one if it is."""
    try:
        return make_judge(engine or "rapidocr", pipeline.model)
    except ValueError as error:
        if engine is not None:
            raise
        print(f"the page does not read what is written: {error}", flush=True)
        return None


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    return run_command(lambda: demo(args), interrupted="the page is closed")


if __name__ == "__main__":
    raise SystemExit(main())
