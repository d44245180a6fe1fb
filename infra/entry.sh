#!/bin/sh
# What a container of compose.yaml runs: mlflow, prefect or worker. Secrets come from files, never from arguments.
# They are made by `openssl rand -hex 24`, so that no character has a meaning in an address.
set -eu
umask 077

secret() {
    test -s "/run/secrets/$1" || { echo "goal: the secret $1 is missing or empty" >&2; exit 2; }
    cat "/run/secrets/$1"
}

case "${1:-}" in
mlflow)
    database="postgresql+psycopg://goal:$(secret postgres_password)@postgres:5432"
    MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret mlflow_secret_key)
    MLFLOW_BACKEND_STORE_URI="$database/mlflow"
    MLFLOW_AUTH_CONFIG_PATH=/tmp/auth.ini
    export MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_BACKEND_STORE_URI MLFLOW_AUTH_CONFIG_PATH
    cat >"$MLFLOW_AUTH_CONFIG_PATH" <<EOF
[mlflow]
default_permission = READ
database_uri = $database/mlflow_auth
admin_username = admin
admin_password = $(secret mlflow_admin_password)
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
EOF
    exec mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 --workers 2 \
        --allowed-hosts "${ALLOWED_HOSTS:?}" --artifacts-destination /artifacts
    ;;
prefect)
    PREFECT_API_DATABASE_CONNECTION_URL="postgresql+asyncpg://goal:$(secret postgres_password)@postgres:5432/prefect"
    PREFECT_SERVER_API_AUTH_STRING="admin:$(secret prefect_admin_password)"
    export PREFECT_API_DATABASE_CONNECTION_URL PREFECT_SERVER_API_AUTH_STRING
    exec prefect server start --host 0.0.0.0 --port 4200
    ;;
worker)
    PREFECT_API_AUTH_STRING="admin:$(secret prefect_admin_password)"
    MLFLOW_TRACKING_USERNAME=admin
    MLFLOW_TRACKING_PASSWORD=$(secret mlflow_admin_password)
    export PREFECT_API_AUTH_STRING MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
    prefect work-pool create goal --type process --overwrite
    prefect global-concurrency-limit inspect gpu >/dev/null 2>&1 \
        || prefect global-concurrency-limit create gpu --limit 1
    prefect --no-prompt deploy --all
    exec prefect worker start --pool goal --with-healthcheck
    ;;
*)
    echo "usage: entry mlflow|prefect|worker" >&2
    exit 2
    ;;
esac
