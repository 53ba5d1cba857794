"""Personal data that has a form: addresses of e-mail and IP, numbers of phones, cards and accounts,
keys of services. Names and postal addresses have none, and are not found.
"""
import ipaddress
import re

# of each country how many characters an IBAN has (ISO 13616)
COUNTRIES = re.findall(r"([A-Z]+)(\d+)", """
    AD24 AE23 AT20 BE16 BG22 BR29 CH21 CY28 CZ24 DE22 DK18 EE20 EG29 ES24 FI18 FR27 GB22 GI23 GR27
    HR21 HU28 IE22 IL23 IS26 IT27 LI21 LT20 LU20 LV21 MC27 MT31 NL18 NO15 PK24 PL28 PT25 QA29 RO24
    RS22 SA24 SE24 SI19 SK24 SM27 TR26 UA29 VA22""")
IBANS = "|".join(rf"{country}\d\d(?: ?[A-Z0-9]){{{int(n) - 4}}}" for country, n in COUNTRIES)
# dates, ISBNs, decimal and binary numbers, and what is free of charge in North America
NO_PHONE = re.compile(r"\d{4}([./-])\d\d?\1\d\d?(?!\d)|\d\d?([./-])\d\d?\2\d{4}(?!\d)"
                      r"|97[89]([ -]?\d){10}$|\+?\d+\.\d+$|[01\W]+$"
                      r"|(\+?1\W?)?\W?8(00|33|44|55|66|77|88)\b")


def luhn(number):
    """Whether the last digit checks the others, as that of a card does (ISO/IEC 7812)."""
    digits = [int(d) for d in re.sub(r"\D", "", number)][::-1]
    return sum(digits[::2] + [sum(divmod(2 * d, 10)) for d in digits[1::2]]) % 10 == 0


def mod_97(iban):
    """Whether the two digits behind the country check the rest (ISO 7064)."""
    iban = iban.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1


def is_global(address):
    """Whether it is an IP address that may be somebody's."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.is_global and not found.is_multicast


def is_phone(text):
    """Whether what has the form is nothing else that has it."""
    return 9 <= len(re.sub(r"\D", "", text)) <= 15 and not NO_PHONE.match(text)


PATTERNS = (    # name; fewest digits, and texts of which it holds one; what it looks like; check
    ("KEY", 0, ("PRIVATE KEY", "sk-", "gh", "AKIA", "AIza", "xox", "hf_", "k_live_"), re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
        r"|(?<![\w-])(?:sk-(?=[\w-]*\d)[\w-]{20,}|(?:gh[po]|github_pat)_\w{22,}|AIza[\w-]{35}|AKIA"
        r"(?!\w*EXAMPLE)[A-Z0-9]{16}\b|xox[abprs]-[\w-]{10,}|hf_[A-Za-z]{30,}|[sr]k_live_\w{16,})"),
     bool),
    # neither git's user in addresses of repositories nor names for examples (RFC 2606)
    ("EMAIL", 0, ("@",), re.compile(
        r"(?<![\w.+-])(?!git@)[\w.+-]{1,64}@(?!(?:[\w-]{1,63}\.){0,8}example\.\w{3}\b)"
        r"(?:[\w-]{1,63}\.){1,8}(?:[a-z]{2}|com|net|org|edu|gov|mil|info|biz|name|dev|app|"
        r"online|cloud|tech|xyz)\b", re.IGNORECASE), bool),
    ("IBAN", 11, ("",), re.compile(rf"\b(?=[A-Z]{{2}}\d\d)(?:{IBANS})(?![A-Z0-9])"), mod_97),
    # with what Visa, Mastercard, American Express, Diners, JCB, UnionPay and Discover begin
    ("CARD", 13, ("",), re.compile(
        r"(?=4|5[1-5]|2[2-7]|3[04-8]|6[0245])(?<![\w.-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1"
        r"\d{1,7}|\d{4}([ -])\d{6}\2\d{4,5})(?![\w-])"), luhn),
    # 1.2.3.4 is a version or a section
    ("IP", 4, (".", ":"), re.compile(
        r"(?=[0-9])(?<![\w.])(?<!ersion )(?=[\d.]*\d\d)\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)"
        r"|(?<![\w:.])[23][\da-fA-F]{3}(?::[\da-fA-F]{0,4}){2,7}(?![\w:])"), is_global),
    # with the country, as in North America, or with a 0 and groups
    ("PHONE", 9, ("",), re.compile(
        r"(?=[+(0-9])(?<![\w.+)/-])(?<!\d )(?:\+[1-9](?:[ ()./-]{0,3}\d){8,14}"
        r"|(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}(?! \d)"
        r"|(?:00[1-9]|\(?0[1-9])\d{0,4}\)?(?:[ /.-]{1,3}\d{2,8}){1,5})(?!\w|[.,:/-]\d)"), is_phone),
)


def mask(text):
    """Text with [EMAIL], [PHONE], ... in place of what is found, and the set of these names."""
    names, digits = set(), sum(map(text.count, "0123456789"))
    for name, fewest, hints, pattern, check in PATTERNS:
        if digits >= fewest and any(hint in text for hint in hints):
            found = {m[0]: f"[{name}]" for m in pattern.finditer(text) if check(m[0])}
            names |= {name} if found else set()
            # whole finds: a@b.de may also stand in aa@b.de
            text = pattern.sub(lambda m, found=found: found.get(m[0], m[0]), text)
    return text, names
