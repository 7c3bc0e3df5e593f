# curl, as people try an API first: whole, as a stream, JSON of a schema, and what is refused.
set -euo pipefail
url=$1 model=$2 question=$3 expected=$4

ask() { curl -sf "$url$1" -H 'Content-Type: application/json' -d "$2"; }

said="\"messages\": [{\"role\": \"user\", \"content\": \"$question\"}], \"temperature\": 0, \"model\": \"$model\""
ask /v1/chat/completions "{$said}" | grep -q "$expected"
ask /v1/chat/completions "{$said, \"stream\": true}" | tail -n 2 | grep -qx 'data: \[DONE\]'
ask /v1/chat/completions "{$said, \"response_format\": {\"type\": \"json_schema\", \"json_schema\":
  {\"name\": \"answer\", \"schema\": {\"enum\": [\"yes\", \"no\"]}}}}" | grep -Eq '"content":"\\"(yes|no)\\""'
curl -sfi "$url/v1/models" | grep -qi '^content-security-policy:'
[ "$(curl -so /dev/null -w '%{http_code}' -d '{}' "$url/v1/chat/completions")" = 415 ]
[ "$(curl -so /dev/null -w '%{http_code}' -H 'Host: evil.example' "$url/v1/models")" = 403 ]
