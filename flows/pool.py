"""What Prefect's server holds before a worker starts: pool, queue, the end of dead runs, deployments."""

import subprocess
import sys
from contextlib import suppress
from datetime import timedelta

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists

from flows import GPU, POOL

DEAD = "goal: dead flow runs"
# Three heartbeats of PREFECT_FLOWS_HEARTBEAT_FREQUENCY.
SILENCE = timedelta(seconds=90)
ALIVE = "prefect.flow-run.heartbeat"
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}


def main() -> None:
    """Make what is missing; the same again changes nothing."""
    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        # A queue's limit counts the runs that run, so that none is lost with a server or a worker.
        with suppress(ObjectAlreadyExists):
            client.create_work_queue(GPU, concurrency_limit=1, work_pool_name=POOL)
        if not client.read_automations_by_name(DEAD):
            client.create_automation(_dead_runs())
    subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"], check=True)


def _dead_runs() -> AutomationCore:
    """A flow run that neither ended nor sent a heartbeat in time was killed with its machine: crashed."""
    return AutomationCore(
        name=DEAD,
        trigger=EventTrigger(
            after={ALIVE},
            expect={ALIVE, *ENDS},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[
            ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat: killed with its machine")
        ],
    )


if __name__ == "__main__":
    main()
