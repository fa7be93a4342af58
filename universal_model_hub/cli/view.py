"""``umh view``: a scan with labels, probabilities and features, in a page on this machine."""

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from universal_model_hub.cli import messages, options
from universal_model_hub.cli.cases import add_label_names
from universal_model_hub.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "scan", type=Path, metavar="SCAN", help="a scan, or a folder of DICOM files"
    )
    parser.add_argument(
        "labels",
        nargs="*",
        type=Path,
        metavar="LABELS",
        help="label maps on the scan's grid",
    )
    add_label_names(parser)
    parser.add_argument(
        "--model", metavar="NAME", help="segment the scan with it first, and show what it found"
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="with --model: a map of each class"
    )
    parser.add_argument(
        "--features",
        action="store_true",
        help="with --model: its features, three main components as colors",
    )
    parser.add_argument("--modality", choices=("auto", "CT", "MR"), default="auto")
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")
    options.add_network(parser)
    options.add_hub(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prepare everything, serve it until a signal, and leave nothing behind."""
    if args.model is None and (args.probabilities or args.features):
        raise ConfigError("Expected --model with --probabilities and --features, got none.")
    from universal_model_hub.viewer import ViewerServer, make_scene

    with tempfile.TemporaryDirectory(prefix="umh-view-") as folder:
        scene = make_scene(
            Path(folder),
            args.scan,
            args.labels,
            label_names=args.label_names,
            model=None if args.model is None else load_model(args),
            probabilities=args.probabilities,
            show_features=args.features,
            modality=args.modality,
            device=args.device,
            precision=args.precision,
            memory_limit=args.memory_limit,
            progress=sys.stderr is not None and sys.stderr.isatty() and not args.quiet,
        )
        with ViewerServer(scene, args.port) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            told = {"address": server.address, "volumes": len(scene.volumes)}
            print(json.dumps(told) if args.json else server.address)
            sys.stdout.flush()
            if not args.quiet:
                messages.say("serving this machine alone; Ctrl-C ends it")
            if not args.no_browser:
                with contextlib.suppress(webbrowser.Error):
                    webbrowser.open(server.address)
            try:
                thread.join()
            finally:
                server.shutdown()
    return 0


def load_model(args: argparse.Namespace) -> "nn.Module":
    """Load a segmenter, or of other weights the encoder, for features alone.

    Raises:
        ConfigError: If the device cannot be used, or the model has nothing to show.
    """
    from universal_model_hub.config import read_config
    from universal_model_hub.devices import torch_device
    from universal_model_hub.hub import resolve_model
    from universal_model_hub.loading import load_encoder, load_segmenter

    torch_device(args.device)
    more = options.hub_options(args)
    kind = read_config(resolve_model(args.model, **more).config).kind
    if kind == "segmenter":
        return load_segmenter(args.model, in_channels=None, device=args.device, **more)
    if args.features and not args.probabilities:
        return load_encoder(args.model, in_channels=None, device=args.device, **more)
    raise ConfigError(
        f"Expected --model to be a segmenter, {args.model} is of kind {kind}. Pass --features "
        "alone to see its features, or another model."
    )
