"""Set up Prefect's server before a worker starts: pool, queue, deployments, and rules about their runs."""

import os
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ActionTypes, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists

from flows import GPU, POOL

DEAD, ALERT = "goal: dead flow runs", "goal: alerts"
# Three heartbeats of PREFECT_FLOWS_HEARTBEAT_FREQUENCY.
SILENCE = timedelta(seconds=90)
ALIVE = "prefect.flow-run.heartbeat"
ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
BAD = {f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "Late")}
# Where alerts go: a webhook that takes {"text": ...}, as those of Slack and Mattermost.
ADDRESS = "GOAL_ALERT_URL"
SUBJECT = "{{ flow_run.name }}: {{ flow_run.state.name }}"
BODY = "{{ flow_run.state.message or '' }}\n{{ flow_run|ui_url }}"


def main() -> None:
    """Create what is missing; a second call changes nothing."""
    address = os.environ.get(ADDRESS, "")
    if address and not address.startswith(("http://", "https://")):
        sys.exit(f"{ADDRESS}: expected an address that begins with https:// or http://")
    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        # The limit of a queue counts running flow runs: a server or worker that dies takes no slot with it.
        with suppress(ObjectAlreadyExists):
            client.create_work_queue(GPU, concurrency_limit=1, work_pool_name=POOL)
        subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"], check=True)
        ours = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
        # Of this project only: the server may be shared.
        runs = {
            "match": ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            "match_related": ResourceSpecification(
                {
                    "prefect.resource.role": ["deployment"],
                    "prefect.resource.id": [
                        f"prefect.deployment.{one.id}"
                        for one in client.read_deployments(work_pool_filter=ours)
                    ],
                }
            ),
            "for_each": {"prefect.resource.id"},
            "threshold": 1,
        }
        # A run that neither ended nor sent a heartbeat in time: its machine is lost.
        dead = EventTrigger(
            after={ALIVE}, expect={ALIVE, *ENDS}, posture=Posture.Proactive, within=SILENCE, **runs
        )
        crash = ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat: killed with its machine")
        _automate(client, DEAD, dead, crash)
        if address:
            bad = EventTrigger(expect=BAD, posture=Posture.Reactive, within=timedelta(0), **runs)
            _automate(
                client,
                ALERT,
                bad,
                SendNotification(block_document_id=_webhook(address), subject=SUBJECT, body=BODY),
            )


def _automate(client: SyncPrefectClient, name: str, trigger: EventTrigger, action: ActionTypes) -> None:
    """Make the automation, or bring it up to date; one that a user has switched off stays off."""
    wanted = AutomationCore(name=name, trigger=trigger, actions=[action])
    known = client.read_automations_by_name(name)
    if not known:
        client.create_automation(wanted)
    # An update forgets the runs whose heartbeats it was waiting for, so only where something differs.
    elif _content(known[0]) != _content(wanted):
        # Read again, because the client sends only what was given, without the types of triggers and actions.
        given = wanted.model_dump(mode="json", exclude={"owner_resource"}) | {"enabled": known[0].enabled}
        client.update_automation(known[0].id, AutomationCore.model_validate(given))


def _content(automation: AutomationCore) -> dict[str, Any]:
    return automation.model_dump(mode="json", include={"trigger": True, "actions": True})


def _webhook(address: str) -> UUID:
    """Keep the address, which may hold a token, as a secret on the server; the id of its block."""
    block = CustomWebhookNotificationBlock(
        name=POOL,
        url="{{address}}",
        json_data={"text": "{{subject}}\n{{body}}"},
        secrets={"address": address},
    )
    return block.save(f"{POOL}-alerts", overwrite=True)


if __name__ == "__main__":
    main()
