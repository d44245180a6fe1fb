#!/bin/sh
# What the container s3 of compose.yaml runs: SeaweedFS with one user, whose keys come from files.
set -eu
umask 077

cat >/tmp/s3.json <<END
{"identities": [{
  "name": "goal",
  "credentials": [{"accessKey": "$(cat /run/secrets/s3_access_key)", "secretKey": "$(cat /run/secrets/s3_secret_key)"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]
}]}
END
exec weed server -dir=/data -ip=s3 -ip.bind=0.0.0.0 -master.volumeSizeLimitMB=1024 -volume.max=0 \
    -s3 -s3.port=8333 -s3.config=/tmp/s3.json
