#!/bin/sh
# The service, from a shell script.
#
# A model is trained on a table, the service is started with it, and curl sends payments and a label. The answers
# are JSON. In the end the service is stopped.
#
# What to see: the score of an ordinary payment, then of one at night, far from home and a hundred times as large,
# with the two strongest reasons. Its score is higher; whether it is an alarm depends on the threshold of the model.
# The service keeps the history of each card in its database, so a payment is sent alone.
#
#     pip install 'balancer[serve,train]'
#     sh examples/service.sh
set -e
PORT=${PORT:-8000}
URL=http://127.0.0.1:$PORT

if [ ! -d runs/mine ]; then  # a model that is there already is used
  balancer simulate --rows 8000 --fraud-rate 0.03 --seed 1 --out mine.parquet > training.log
  balancer train --dataset mine.parquet --learner trees --out runs/mine >> training.log
fi

balancer serve --run runs/mine --port "$PORT" --database sqlite:///service.db > service.log 2>&1 &
SERVICE=$!
trap 'kill $SERVICE; wait $SERVICE || true' EXIT
until curl -sf "$URL/readyz" > ready.json; do
  kill -0 "$SERVICE"  # ends the script if the service could not start
  sleep 0.3
done

post() {  # post ROUTE JSON: prints the answer
  curl -s "$URL$1" -H 'Content-Type: application/json' -d "$2" | python3 -m json.tool
}

echo "an ordinary payment:"
post /v1/score '{"transactions": [
  {"transaction_id": "t-1", "card_id": "C1", "time": "2026-05-28T09:10:00", "amount": 19.99, "merchant_id": "M00007",
   "merchant_category": "fuel", "channel": "chip", "region": "R1", "card_product": "gold", "distance_km": 1.5}]}'

echo "one that does not fit:"
post /v1/score '{"reasons": 2, "transactions": [
  {"transaction_id": "t-2", "card_id": "C1", "time": "2026-05-31T03:10:00", "amount": 1920.00, "merchant_id": "M00020",
   "merchant_category": "electronics", "channel": "online", "region": "R4", "card_product": "gold", "distance_km": 880}]}'

echo "its label:"
post /v1/labels '{"labels": [{"id": "t-2", "label": 1}]}'

echo "what is stored about it:"
curl -s "$URL/v1/decisions/t-2" | python3 -c 'import json, sys
stored = json.load(sys.stdin)
print({name: stored[name] for name in ("id", "entity", "decision", "label", "model")})'
