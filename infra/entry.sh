#!/bin/sh
# What a container of compose.yaml runs: mlflow, prefect, buckets or worker. Secrets come from files, never from
# arguments. They are made by `openssl rand -hex 24`, so that no character has a meaning in an address.
set -eu
umask 077
postgres=${POSTGRES:-postgres:5432}
secrets=${SECRETS:-/run/secrets}
host=${LISTEN:-0.0.0.0}

secret() {
    test -s "$secrets/$1" || { echo "goal: the secret $1 is missing or empty" >&2; exit 2; }
    cat "$secrets/$1"
}

# Where ARTIFACTS is s3://..., S3_ENDPOINT says at which server.
store() {
    AWS_ACCESS_KEY_ID=$(secret s3_access_key)
    AWS_SECRET_ACCESS_KEY=$(secret s3_secret_key)
    MLFLOW_S3_ENDPOINT_URL=${S3_ENDPOINT:?}
    export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY MLFLOW_S3_ENDPOINT_URL
}

case "${1:-}" in
mlflow)
    database="postgresql+psycopg://goal:$(secret postgres_password)@$postgres"
    MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret mlflow_secret_key)
    # For the secrets of webhooks: 44 characters of base64, of which hexadecimal digits are a part.
    MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY=$(secret mlflow_secret_key | cut -c1-43)=
    MLFLOW_BACKEND_STORE_URI="$database/mlflow"
    MLFLOW_AUTH_CONFIG_PATH=$(mktemp)
    export MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY
    export MLFLOW_BACKEND_STORE_URI MLFLOW_AUTH_CONFIG_PATH
    case "${ARTIFACTS:=/artifacts}" in s3://*) store ;; esac
    cat >"$MLFLOW_AUTH_CONFIG_PATH" <<END
[mlflow]
default_permission = READ
database_uri = $database/mlflow_auth
admin_username = admin
admin_password = $(secret mlflow_admin_password)
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
END
    exec mlflow server --app-name basic-auth --host "$host" --port "${PORT:-5000}" --workers 2 \
        --allowed-hosts "${ALLOWED_HOSTS:?}" --artifacts-destination "$ARTIFACTS"
    ;;
prefect)
    PREFECT_API_DATABASE_CONNECTION_URL="postgresql+asyncpg://goal:$(secret postgres_password)@$postgres/prefect"
    PREFECT_SERVER_API_AUTH_STRING="admin:$(secret prefect_admin_password)"
    export PREFECT_API_DATABASE_CONNECTION_URL PREFECT_SERVER_API_AUTH_STRING
    exec prefect server start --host "$host" --port "${PORT:-4200}"
    ;;
buckets)
    store
    exec python -c '
import os, boto3
s3 = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"], region_name="us-east-1")
known = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
for name in {"mlflow", "dvc"} - known:
    s3.create_bucket(Bucket=name)
'
    ;;
worker)
    PREFECT_API_AUTH_STRING="admin:$(secret prefect_admin_password)"
    MLFLOW_TRACKING_USERNAME=admin
    MLFLOW_TRACKING_PASSWORD=$(secret mlflow_admin_password)
    export PREFECT_API_AUTH_STRING MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
    python -m flows.pool
    exec prefect worker start --pool goal --with-healthcheck
    ;;
*)
    echo "usage: entry mlflow|prefect|buckets|worker" >&2
    exit 2
    ;;
esac
