"""Names of columns and the roles that they say: which column is the label, the customer, the time, a code.

What is special: names are compared in one plain form (small letters, no diacritics, words joined by
underscores), so that `TransactionAmt`, `Montant` and `Date d'opération` are recognised. The patterns of a
role are in ranks: a column of a higher rank is taken before all columns of a lower one, and two columns of
the same rank are ambiguous.
"""

from __future__ import annotations

import re
import unicodedata

_OF_PAYMENT = r"(?:tx|txn|trx|trans|transaction|event|payment|purchase|order|operation|booking|record|buchungs|transaktions?)"
_NUMBER = r"(?:id|no|nr|num|number|nummer|key|code|hash|token|ref)"
_CUSTOMER = (
    r"(?:card|credit_card|debit_card|cc|customer|cust|account|acct|client|user|entity|cardholder|card_holder|member|subscriber|"
    r"carte|kunde|kunden|konto|karte|karten|cliente|clienta|tarjeta|cuenta|conto|carta|compte|cartao|conta)"
)

RANKS: dict[str, tuple[str, ...]] = {
    "label": (
        r"(?:is_?|was_?|es_?|est_?|ist_?)?(?:fraud|fraudulent|fraude|fraudulento|fraudulenta|frauduleux|betrug|frode|frod)"
        r"|(?:tx_?)?fraud_?(?:label|flag|type|class|bool|indicator|ind|yn)|(?:tx|trans|transaction)_?fraud|(?:flag|label)_?fraude?|label",
        r"class|target|klasse",
        r"fraude?_?(?:found|reported|detected|confirmed|occurred|happened|outcome|status|result|target|yn|p)(?:_\w{1,2})?"
        r"|(?:confirmed|reported|real|actual|first_party|third_party|card|payment|account|claim|application)_fraude?",
        r"churn|churned|is_churn|exited|attrition|attrition_flag|attack_cat|attack|is_attack|attack_type|anomaly|is_anomaly|malicious|"
        r"is_malicious|intrusion|is_intrusion|chargeback|is_chargeback|charge_back|has_chargeback|is_spam|spam|is_phishing|phishing|scam|"
        r"is_scam|abwanderung|gekundigt|(?:is_)?(?:money_)?laundering",
        r"y|outcome|response|default|defaulted|is_default|default_flag|default_payment_next_month|loan_default|serious_dlqin2yrs|delinquent|(?:is_)?bad|good_bad|loan_status",
    ),
    "entity": (
        rf"{_CUSTOMER}(?:_?{_NUMBER})?|(?:id|numero|num|no|nr|number|numero_de|num_de|id_de)_?{_CUSTOMER}|{_CUSTOMER}_(?:numero|identifier)"
        r"|pan|iban|msisdn|customer_account|account_holder",
        r"name_?orig|orig_?name|sender(?:_?(?:id|account|name|iban))?|payer(?:_?(?:id|account|name))?|originator(?:_?(?:id|account))?"
        r"|(?:from|src|source|orig|debit|debtor)_?(?:account|acct|id|customer|card)|(?:account|acct)_?(?:orig|from|src)",
        r"email|e_mail|phone|phone_number",
    ),
    "amount": (
        rf"(?:{_OF_PAYMENT}_?)?(?:amount|amt)|montant|betrag|importe|importo|valor|kwota|bedrag|belop|castka|summa"
        rf"|montant_{_OF_PAYMENT}|{_OF_PAYMENT}?_?betrag|umsatz",
        rf"value|(?:{_OF_PAYMENT}|total|gross|net)_?(?:value|sum|total|price)|(?:total|gross|net|billing|local)_?(?:amount|amt)"
        r"|(?:amount|amt|montant|betrag)_(?:usd|eur|gbp|chf|inr|brl|local|cents?|in_cents|base)|sum|total|price|prix|preis|precio",
    ),
    "id": (
        rf"{_OF_PAYMENT}_?(?:id|no|nr|num|number|nummer|uuid|key|ref|reference)|id|row_?id",
        r"index|idx|row|row_?(?:no|nr|num|number|index)|unnamed(?:_?\d+)?|uuid|guid|record|sequence|seq|no|nr|reference|ref"
        rf"|(?:numero|num|id)_?(?:de_)?{_OF_PAYMENT}",
    ),
    "time": (
        rf"(?:{_OF_PAYMENT}_?)?(?:time|datetime|date_?time|timestamp|ts|unix_?time|dt|date|at)|time_?stamp|trans_date_trans_time"
        rf"|(?:date|time|datetime|timestamp|heure)_(?:de_|d_|of_)?{_OF_PAYMENT}|epoch|epoch_?(?:time|s|ms|seconds|millis)|unix|step|datum"
        r"|zeitstempel|buchungsdatum|buchungstag|horodatage|fecha|fecha_?hora|fecha_(?:de_)?\w+|data_ora|data_hora|date_heure|zeit|momento",
        r"when|(?:created|occurred|recorded|posted|booked|logged|received|authorized|authorised|processed)(?:_?(?:at|on|time|date|ts))?"
        r"|(?:start|begin|flow_start)_?(?:time|ts|timestamp)|stime|s_time",
        r"\w+(?:timestamp|datetime|_time|_date|_ts|_at|_on)|(?:time|date|timestamp)_\w+",
    ),
}
"""Patterns of plain names by role, the strongest first."""

CONTEXT = (
    r"(?:terminal|merchant|shop|store|device|pos|atm|beneficiary|payee|recipient|receiver|creditor|commercant|handler|haendler|comercio"
    r"|empfanger|empfaenger|beneficiaire|destinataire|destinatario|beneficiario)"
    r"(?:_?(?:id|no|num|number|name|account))?|name_?dest|dest_?name|(?:to|dest|dst|counterparty)_?(?:account|acct)|counterparty(?:_?(?:id|name))?"
)
"""Plain names of the other side of a transaction."""

_SECOND_LABEL = r"fraud|betrug|chargeback|charge_back|(?:^|_)(?:label|target)s?(?:_|\d|$)|dispute|(?:^|_)is_?flagged|(?:^|_)flagged(?:_|$)"
_FACT = (
    r"(?:^|_)(?:prior|previous|prev|past|last|history|historic|historical|earlier|ago|recent|known|count|counts|cnt|num|number|nb|n|anzahl"
    r"|rate|ratio|share|score|prob|probability|risk|avg|mean|max|min|total|sum|days?|weeks?|hours?|months?|years?|\d+[dhmwy]|count\d+[dhmwy]?|printer"
    r"|merchant|device|terminal|vendor|country|neighbou?rs?)(?:_|$)"
    r"|^(?:label|target)_(?!flag|class|date|type|name|value|id|is|fraud|bin|binary|text|code|encoded|num|\d)[a-z]"
)
"""Facts about the past or about others, whose names have a word of the label."""
_NOT_THE_TIME = (
    r"(?:^|_)(?:dob|birth|birthday|birthdate|born|geburts\w*|naissance|nacimiento|expiry|expires?|expiration|exp|valid|until|due|open|opened"
    r"|opening|signup|sign_up|join|joined|registration|registered|issue|issued|close|closed|last|first|prev|previous|next|update|updated"
    r"|reported|report|resolved|confirmed|settled|settlement)(?:_|$)|geburt"
)
_STRONG_CODE = r"(?:^|_)(?:id|ids|code|codes|cd|mcc|zip|zipcode|postal|postcode|plz|bin|iin|sku|ean|upc|ip|asn|imei|msisdn|iban|bic|swift|postleitzahl)"
_CODE = (
    rf"{_STRONG_CODE}$|^id_|^(?:card|addr|address|device|prod|product)_?\d+$|(?:id|code|mcc)$"
    r"|(?:^|_)(?:device|port|terminal|merchant|shop|store|branch|region|district|country|state|city|currency|channel|category|cat|type|class"
    r"|group|segment|cluster|vendor|seller|product|operator|agent|employee|os|browser|hash|token|serial|account|acct|customer|client|user"
    r"|card|key)$"
)
_COUNT = (
    r"(?:^|_)(?:count|counts|cnt|num|nb|n|number_of|nombre|anzahl|qty|quantity|age|tenure|days?|hours?|minutes|seconds|secs|months?|years?"
    r"|duration|length|size|bytes|packets|pkts|score|rate|ratio|amount|balance|distance|dist|total|sum|avg|mean|max|min|std|income|salary|limit|price|cost|fee|revenue|loan|payment)(?:_|$)"
)
_COUNT_NOT_CODE = r"(?:^|_)(?:num|number|nb|n|count|cnt|anzahl|nombre)_(?:of_)?\w+|\w+_(?:count|cnt|age|days|hours)$"
_PERSONAL = (
    r"(?:^|_)(?:first_?name|last_?name|full_?name|surname|vorname|nachname|prenom|apellido|street|address|adresse|description|comment|comments"
    r"|note|notes|memo|message|text|subject|narrative|details|url|user_?agent|phone|email|e_mail)(?:_|$)|^(?:first|last|name|nom|nombre)$"
)
_ID = r"(?:^|_)(?:id|ids|no|nr|num|number|nummer|numero|key|uuid|guid|ref|reference|index|idx|row|hash|seq|sequence|serial|token)(?:_|$)|_?id$"


def plain_name(name: str) -> str:
    """A column name in small letters, without diacritics, its words joined by underscores.

    >>> [plain_name(name) for name in ("TransactionAmt", "Date d'opération", "isFraud", "TX_FRAUD")]
    ['transaction_amt', 'date_d_operation', 'is_fraud', 'tx_fraud']
    """
    text = name.replace("ß", "ss").replace("ø", "o").replace("Ø", "O").replace("ł", "l")
    text = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    text = re.sub(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", text)
    return re.sub(r"[\W_]+", "_", text.lower()).strip("_")


def rank(role: str, name: str) -> int | None:
    """The rank of a column for a role by its name, 0 the highest; None if its name does not say the role."""
    plain = plain_name(name)
    joined = plain.replace("_", "")
    for place, pattern in enumerate(RANKS[role]):
        if re.fullmatch(pattern, plain) or (place == 0 and joined == name.lower() and re.fullmatch(pattern, joined)):
            return place
    return None


def is_context(name: str) -> bool:
    """Whether the name is that of the other side of a transaction: a merchant, a terminal."""
    return re.fullmatch(CONTEXT, plain_name(name)) is not None


def is_second_label(name: str) -> bool:
    """Whether the name says that the column restates the label or is known only after it."""
    place = rank("label", name)
    # `y`, `default` and `response` are labels of some tables and fields of others.
    if place is not None and place < len(RANKS["label"]) - 1:
        return True
    return may_be_second_label(name) and re.search(_FACT, plain_name(name)) is None


def may_be_second_label(name: str) -> bool:
    """Whether the name has a word of the label: a second label, or a fact such as earlier frauds."""
    return re.search(_SECOND_LABEL, plain_name(name)) is not None


def is_alarm(name: str) -> bool:
    """Whether the name is that of what a rule or a person flagged, which is not the truth."""
    return re.search(r"(?:^|_)flagged(?:_|$)", plain_name(name)) is not None


def is_time(name: str) -> bool:
    """Whether the name is that of a moment, and not merely of something about time, such as a travel time."""
    place = rank("time", name)
    return place is not None and place < len(RANKS["time"]) - 1


def is_other_date(name: str) -> bool:
    """Whether the name is that of a date which is not the time of the row: a birth, an expiry, a report."""
    return re.search(_NOT_THE_TIME, plain_name(name)) is not None or is_second_label(name) or may_be_second_label(name)


def is_code(name: str) -> bool:
    """Whether the name is that of a code or a key, whose digits have no order."""
    plain = plain_name(name)
    if re.search(rf"{_STRONG_CODE}$|_id$", plain):
        return True
    return re.search(f"{_CODE}|{_STRONG_CODE}_", plain) is not None and not is_count(name)


def is_count(name: str) -> bool:
    """Whether the name is that of a count, an age or a measure, whose values have an order."""
    plain = plain_name(name)
    return re.search(_COUNT, plain) is not None or re.search(_COUNT_NOT_CODE, plain) is not None


def is_personal(name: str) -> bool:
    """Whether the name is that of free text, or of a person or place that is named in full."""
    return re.search(_PERSONAL, plain_name(name)) is not None


def is_id(name: str) -> bool:
    """Whether the name is that of a number or text which identifies a row or a thing."""
    plain = plain_name(name)
    return not plain or re.search(_ID, plain) is not None
