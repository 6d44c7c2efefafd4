"""Upload of a network to the Hugging Face hub: weights, config, a model card, and a picture if one is wanted."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from PIL import Image

from attention_branch.data.images import find_images, open_image
from attention_branch.errors import UserError
from attention_branch.explanations.explanation import explain
from attention_branch.explanations.outputs import evaluating
from attention_branch.export.model_card import PICTURE, measured, write_card
from attention_branch.export.source import weights_sha256
from attention_branch.models.network import Network

STRIP = "strip"
_MOST = 6


def push(
    network: Network,
    repo_id: str,
    *,
    run: str | Path | None,
    picture: str | Path | Sequence[str | Path] | None,
    license: str | None,
    private: bool | None,
    token: str | None,
    commit_message: str,
    **upload: Any,
) -> str:
    """Write network and card into a folder and upload it as one commit; see `SavedModel.push_to_hub`."""
    home = _run(network, run)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        network.save_pretrained(folder)
        shown = _picture(network, home, picture, folder / PICTURE)
        api = huggingface_hub.HfApi(token=token)
        done = measured(home, weights_sha256(network))
        try:
            name = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
            write_card(network, folder, name, done, license=license, picture=shown)
            return str(
                api.upload_folder(
                    repo_id=name, repo_type="model", folder_path=folder, commit_message=commit_message, **upload
                )
            )
        except Exception as problem:  # The hub's client raises its own errors, its HTTP library's and the system's.
            reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
            raise UserError(
                f"The hub did not take '{repo_id}' ({reason}); check the name (user/name), the token and the network."
            ) from problem


def _run(network: Network, run: str | Path | None) -> Path | None:
    """Return the run whose evaluations belong to the network: the one named, or the one it was loaded from."""
    if run is None:
        return network.loaded_from
    if not Path(run).is_dir():
        raise UserError(f"There is no folder '{run}'; give the run whose evaluations belong on the card.")
    return Path(run)


def _picture(
    network: Network, run: Path | None, picture: str | Path | Sequence[str | Path] | None, target: Path
) -> str:
    """Write the card's picture, if one is wanted, and return what it shows."""
    if picture is None:
        return ""
    if picture == STRIP:
        strips = sorted(run.glob("maps/epoch-*.png")) if run is not None else []
        if not strips:
            raise UserError("There is no run with strips of maps; give images as picture=, or leave it out.")
        shutil.copyfile(strips[-1], target)
        return "Images of the run's data with the network's maps, after the last epoch."
    paths = find_images(picture)[:_MOST]
    with evaluating(network):
        method = "attention" if network.is_abn else "grad-cam"
        explanation = explain(network, [open_image(path) for path in paths], method, _first_head(network))
    rows = [explanation.figure(index) for index in range(len(paths))]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    sheet.save(target)
    what = "where the network looked" if network.is_abn else f"what {method} says of its answer"
    return f"Image, map and both together: {what}."


def _first_head(network: Network) -> Any:
    return next(iter(network.heads)) if network.heads else None
