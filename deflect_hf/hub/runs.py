"""What a training run publishes: checked before it begins, its checkpoints on the way, its best model at the end."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

from deflect_hf.artifacts import saved_model as checkpoints
from deflect_hf.config.run import RunArguments
from deflect_hf.errors import HubError
from deflect_hf.hub.card import write_card
from deflect_hf.hub.client import Hub
from deflect_hf.hub.picture import draw_prediction
from deflect_hf.hub.publish import Destination, find_base, make_repository, prepare, upload
from deflect_hf.training.loop import Publish

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Publication:
    """Where a run's models go on the Hub."""

    hub: Hub
    destination: Destination
    config: RunArguments

    @classmethod
    def of(cls, config: RunArguments) -> Publication | None:
        """The publication that ``--push_to_hub`` asks for, None without; the first process asks the Hub whether it may.

        Raises:
            HubError: name, token, rights or encoder would make it fail at the end.
        """
        if not config.push_to_hub:
            return None
        destination = Destination(
            str(config.hub_model_id), config.hub_private, config.hub_revision, config.hub_base_model_id
        )
        if os.environ.get("RANK", "0") == "0":
            prepare(Hub(), destination, config)
        return cls(Hub(), destination, config)

    @property
    def publish(self) -> Publish | None:
        """What is to be done at each checkpoint."""
        return self.checkpoint if self.config.hub_strategy == "every_checkpoint" else None

    def checkpoint(self, folder: Path, step: int) -> None:
        """Push a checkpoint to a branch of its own; a failure is told, and the run goes on."""
        destination = replace(self.destination, branch=f"step-{step}")
        try:
            base = find_base(self.hub, self.config, destination.base_model_id, folder)
            make_repository(self.hub, destination)
            upload(self.hub, destination, folder, base, f"Checkpoint after step {step}", picture=False)
        except HubError as error:
            logger.warning("the checkpoint of step %d is not on the Hub, training goes on: %s", step, error)

    def finish(self, best: Path) -> str:
        """Push the best model; returns the address of the commit.

        Raises:
            HubError: it failed; the message names the folder and the command that pushes it later.
        """
        destination, picture = self.destination, self.config.hub_picture
        try:
            base = find_base(self.hub, self.config, destination.base_model_id, best)
            if picture:
                draw_prediction(best)
            return upload(self.hub, destination, best, base, f"Upload {self.config.finetune} model", picture=picture)
        except HubError as error:
            raise HubError(
                f"{error} The run is complete, its model is in {best}. Push it later: {destination.command(best)}"
                + ("" if picture else " --picture false")
            ) from error


def finish(work_dir: Path, publication: Publication | None) -> str | None:
    """Write the model card of a run that has ended, and publish its model if that was asked for; returns the address.

    Raises:
        HubError: publishing failed.
    """
    best = checkpoints.result_folder(work_dir)
    write_card(best)
    return publication.finish(best) if publication is not None else None
