"""Personal data that has a form: addresses of e-mail and IP, numbers of phones, cards, accounts and
US social security, keys of services. Names and postal addresses have none, and are not found.
"""
import ipaddress
import re

# of each country how many characters an IBAN has (ISO 13616)
COUNTRIES = re.findall(r"([A-Z]+)(\d+)", """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29
    ES24 FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30
    KZ20 LB28 LI21 LT20 LU20 LV21 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25
    QA29 RO24 RS22 SA24 SE24 SI19 SK24 SM27 TN24 TR26 UA29 VA22 VG24 XK20""")
IBANS = "|".join(rf"{country}\d\d(?: ?[A-Z0-9]){{{int(n) - 4}}}" for country, n in COUNTRIES)
KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<![\w-])(?:sk-(?=[\w-]*\d)[\w-]{20,}|(?:gh[po]|github_pat)_\w{22,}|AIza[\w-]{35}"
    r"|AKIA(?!\w*EXAMPLE)[A-Z0-9]{16}\b|xox[abprs]-[\w-]{10,}|hf_[A-Za-z]{30,}|[sr]k_live_\w{16,})")
EMAIL = re.compile(
    r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}(?:[a-z]{2}|com|net|org|edu|gov|mil|info|biz|"
    r"name|dev|app|online|cloud|tech|xyz|example|test|invalid)\b", re.IGNORECASE)
IBAN = re.compile(rf"\b(?=[A-Z]{{2}}\d\d)(?:{IBANS})(?![A-Z0-9])")
# what Visa, Mastercard, American Express, Diners Club, JCB, UnionPay and Discover begin with
CARD = re.compile(r"(?<![\w.-])(?=4|5[1-5]|2[2-7]|3[04-8]|6[0245])(?:\d{13,19}"
                  r"|\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{4,5})(?![\w-])")
IPV4 = re.compile(r"(?<![\w.])(?<!ersion )\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])[23][\da-fA-F]{3}(?::[\da-fA-F]{0,4}){2,7}(?![\w:])")
SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}(?![\w-])")
# with the country, as in North America, or with a 0 and groups
PHONE = re.compile(
    r"(?<![\w.+)/-])(?<!\d )(?:\+[1-9](?:[ ()./-]{0,3}\d){8,14}"
    r"|(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}(?! \d)"
    r"|(?:00[1-9]|\(?0[1-9])\d{0,4}\)?(?:[ /.-]{1,3}\d{2,8}){1,5})(?!\w|[.,:/-]\d)")
# names that are for examples (RFC 2606), and git's user in the addresses of repositories
NOBODY = re.compile(r"git@|.*[@.](example(\.(com|net|org))?|test|invalid)$", re.IGNORECASE)
# dates, ISBNs, decimal and binary numbers
NO_PHONE = re.compile(r"\d{4}([./-])\d\d?\1\d\d?(?!\d)|\d\d?([./-])\d\d?\2\d{4}(?!\d)"
                      r"|97[89]([ -]?\d){10}$|\+?\d+\.\d+$|[01\W]+$")


def luhn(number):
    """Whether the last digit checks the others, as that of a card does (ISO/IEC 7812)."""
    digits = [int(d) for d in re.sub(r"\D", "", number)][::-1]
    return sum(digits[::2] + [sum(divmod(2 * d, 10)) for d in digits[1::2]]) % 10 == 0


def mod_97(iban):
    """Whether the two digits behind the country check the rest (ISO 7064)."""
    iban = iban.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1


def is_global(address):
    """Whether it may be somebody's. 1.2.3.4 is a version, or a section."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.is_global and not found.is_multicast and not re.fullmatch(r"\d(\.\d)+", address)


def is_phone(text):
    """Whether what has the form is nothing else that has it."""
    return 9 <= len(re.sub(r"\D", "", text)) <= 15 and not NO_PHONE.match(text)


def is_somebodys(address):
    """Whether an address of e-mail is no example."""
    return not NOBODY.match(address)


PATTERNS = (    # name; fewest digits, and texts of which one is in what it finds; check
    ("KEY", 0, ("PRIVATE KEY", "sk-", "gh", "AKIA", "AIza", "xox", "hf_", "k_live_"), KEY, bool),
    ("EMAIL", 0, ("@",), EMAIL, is_somebodys),
    ("IBAN", 11, ("",), IBAN, mod_97),
    ("CARD", 13, ("",), CARD, luhn),
    ("IP", 5, (".",), IPV4, is_global),
    ("IP", 4, (":",), IPV6, is_global),
    ("SSN", 9, ("-",), SSN, bool),
    ("PHONE", 9, ("",), PHONE, is_phone),
)


def mask(text):
    """Text with [EMAIL], [PHONE], ... in place of what is found, and the set of these names."""
    names, digits = set(), sum(map(text.count, "0123456789"))
    for name, fewest, hints, pattern, check in PATTERNS:
        if digits >= fewest and any(hint in text for hint in hints):
            masked = _masked(text, name, pattern, check)
            names |= {name} if masked != text else set()
            text = masked
    return text, names


def _masked(text, name, pattern, check):
    return pattern.sub(lambda m: f"[{name}]" if check(m[0]) else m[0], text)
