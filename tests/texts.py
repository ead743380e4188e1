"""Text material in many scripts, written for the tests."""

import numpy as np

SENTENCES: dict[str, tuple[str, ...]] = {
    "english": (
        "The library opens at nine and closes when the last reader goes home.",
        "Heavy rain is expected over the northern hills before tomorrow morning.",
        "How many grams of protein should an adult eat in a day?",
        "A database index makes reading faster and writing a little slower.",
        "She kept every letter in a wooden box under the stairs.",
        "The committee postponed its decision until the budget had been reviewed.",
        "Boil the potatoes, drain them well, and mash them with butter and salt.",
        "What is the difference between a glacier and an iceberg?",
        "Passengers for the island ferry must show a ticket at the second gate.",
        "The experiment failed twice before anyone noticed the loose cable.",
        "Old maps of the harbour show a lighthouse that no longer exists.",
        "Our neighbours are learning to play the violin, slowly and loudly.",
        "Distributed systems fail in parts, so every message may arrive twice.",
        "The museum bought three paintings and returned one of them.",
        "Is it possible to grow tomatoes on a balcony that faces north?",
        "Sailors once measured speed by counting knots on a rope.",
        "This report describes the results of a survey of two thousand households.",
        "A good night's sleep improves memory, mood and judgement.",
        "The train was late again; nobody on the platform seemed surprised.",
        "Engineers strengthened the bridge after the flood of the previous winter.",
        "Summaries should be short, but they must not leave out the numbers.",
        "Can bees recognise human faces, or only patterns that look like flowers?",
        "Children collected chestnuts and sold them for a few coins.",
        "The contract ends in December unless both sides agree to renew it.",
    ),
    "french": (
        "L'été dernier, nous avons traversé la forêt à vélo jusqu'à la côte.",
        "Où puis-je acheter un billet pour le théâtre de la ville ?",
        "Le garçon a reçu un œuf en chocolat et une boîte de pâtes à l'anis.",
        "La bibliothèque municipale prête aussi des instruments de musique.",
        "Cet élève étudie l'histoire des chemins de fer européens.",
    ),
    "german": (
        "Die Straßenbahn fährt heute wegen der Bauarbeiten eine Umleitung.",
        "Wie groß ist der höchste Berg Österreichs über dem Meeresspiegel?",
        "Im Frühjahr blühen die Kirschbäume entlang des Flusses.",
        "Donaudampfschifffahrtsgesellschaften brauchen sehr lange Türschilder.",
        "Der Schlüssel liegt unter dem Blumentopf neben der Tür.",
    ),
    "spanish": (
        "¿Cuántos días dura el viaje en tren desde Málaga hasta la montaña?",
        "El niño señaló el pájaro que cantaba en el árbol más alto.",
        "La panadería vende pan caliente antes de las seis de la mañana.",
        "Mañana habrá una reunión sobre el precio del agua.",
    ),
    "polish_turkish_vietnamese": (
        "Zażółć gęślą jaźń, a potem wypij filiżankę gorącej herbaty.",
        "Wrocław leży nad Odrą i ma więcej niż sto mostów.",
        "İstanbul'da yağmurlu bir günde çay içmek güzeldir.",
        "Öğrenciler sınavdan önce kütüphanede sessizce çalışıyor.",
        "Hôm nay trời mưa to nên chúng tôi ở nhà nấu phở.",
        "Người nông dân trồng lúa trên những thửa ruộng bậc thang.",
    ),
    "russian": (
        "Библиотека открывается в девять часов утра и работает до позднего вечера.",
        "Сколько времени нужно, чтобы доехать до вокзала на трамвае?",
        "Осенью реки поднимаются, и старый мост закрывают для машин.",
        "Учёные измерили температуру воды на дне озера.",
        "Бабушка хранит письма в деревянной шкатулке под лестницей.",
        "Новый закон вступит в силу с первого января будущего года.",
    ),
    "ukrainian": (
        "Щоранку їжачок виходить у садок шукати яблука.",
        "Який ґатунок пшениці найкраще росте на півдні країни?",
    ),
    "greek": (
        "Η βιβλιοθήκη ανοίγει στις εννέα το πρωί και κλείνει αργά το βράδυ.",
        "Πόσο μακριά είναι το λιμάνι από τον σταθμό του τρένου;",
        "Το καλοκαίρι ο άνεμος φυσάει δυνατά στα νησιά.",
        "Οι μαθητές διάβασαν ένα ποίημα για τη θάλασσα.",
    ),
    "arabic": (
        "تفتح المكتبة أبوابها في الساعة التاسعة صباحًا كل يوم.",
        "كم يبعد المطار عن وسط المدينة بالسيارة؟",
        "شرب المسافرون الشاي في ظل شجرة الزيتون القديمة.",
        "أعلنت اللجنة نتائج الدراسة بعد ثلاثة أشهر من العمل.",
    ),
    "hebrew": (
        "הספרייה נפתחת בשעה תשע בבוקר ונסגרת בערב.",
        "כמה זמן לוקח להגיע לתחנת הרכבת ברגל?",
        "שָׁלוֹם לכל הילדים שחוזרים היום אל בית הספר.",
    ),
    "hindi": (
        "पुस्तकालय सुबह नौ बजे खुलता है और शाम को बंद होता है।",
        "एक वयस्क को प्रतिदिन कितना पानी पीना चाहिए?",
        "बारिश के बाद खेतों में हरी घास उग आई।",
        "क्षेत्र के विद्यार्थियों ने विज्ञान की प्रदर्शनी में भाग लिया।",
    ),
    "thai": (
        "ห้องสมุดเปิดเวลาเก้าโมงเช้าและปิดตอนเย็น",
        "รถไฟไปเชียงใหม่ออกจากชานชาลาที่สามกี่โมง",
        "ฝนตกหนักทำให้แม่น้ำเอ่อล้นตลิ่งในหลายจังหวัด",
    ),
    "chinese": (
        "图书馆早上九点开门,晚上最后一位读者离开后才关门。",
        "一个成年人每天应该吃多少克蛋白质?",
        "數據庫索引讓讀取變快,卻讓寫入稍微變慢。",
        "去年夏天我们骑自行车穿过森林,一直到海边。",
        "委員會把決定推遲到預算審查之後。",
    ),
    "japanese": (
        "図書館は朝九時に開いて、最後の読者が帰ると閉まります。",
        "東京から京都まで新幹線で何時間かかりますか。",
        "コンピューターのデータベースは索引があると速く読めます。",
        "雨がやんだら、子どもたちは公園へ走っていった。",
    ),
    "korean": (
        "도서관은 아침 아홉 시에 열고 저녁 늦게 닫습니다.",
        "서울에서 부산까지 기차로 몇 시간이 걸립니까?",
        "비가 그치자 아이들은 공원으로 뛰어갔다.",
        "연구자들은 호수 바닥의 수온을 측정했다.",
    ),
    "emoji": (
        "Great work 👍🏽 see you at the party 🎉🎂",
        "Family trip: 👨‍👩‍👧‍👦 🚗 🏖️ and home again 🏡",
        "Flags 🇫🇷 🇯🇵 🏴󠁧󠁢󠁳󠁣󠁴󠁿 and a rainbow 🏳️‍🌈, plus one astronaut 👩🏾‍🚀",
    ),
    "numbers_and_code": (
        "Order 66-1024 ships on 2026-03-14 at 07:45 for $1,299.99 (incl. 19 % VAT).",
        "https://example.org/articles/2024?id=42&lang=en#section-3",
        "mail someone@example.com or call +41 44 555 01 23 before 18:00",
        'def area(r: float) -> float: return 3.14159 * r ** 2  # "circle"',
        "SELECT id, COUNT(*) FROM events WHERE ts >= '2025-01-01' GROUP BY id;",
        "for (int i = 0; i < n; ++i) { total += x[i] & 0xFF; }",
        "E = mc² and H₂O boils at 100 °C; ½ + ¼ = ¾, x ≤ √2 ≈ 1.41421",
    ),
}

ODDITIES: tuple[str, ...] = (
    "caf\u00e9 na\u00efve r\u00e9sum\u00e9",
    "cafe\u0301 nai\u0308ve re\u0301sume\u0301",
    "\ud55c\uad6d\uc5b4",
    "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165",
    "\uff21\uff22\uff23 \uff11\uff12\uff13 \uff45\uff4d\uff41\uff49\uff4c",
    "o\ufb03ce \ufb01le \ufb02ow",
    "\uff76\uff80\uff76\uff85 \u30ab\u30bf\u30ab\u30ca",
    "\u2460 \u2461 \u337f \u2122 \u00bd \u2167",
    "a\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307 stacked marks",
    "zero\u200bwidth \u200cjoin\u200ders\u2060 and \ufeffmarks",
    "soft\u00adhyphen and no\u00a0break\u202fspaces\u3000wide",
    "left \u202eto right\u202c and \u200fback\u200e",
    "tab\tnew\nline\r\nreturn\x0bvertical\x0cfeed",
    "two  spaces,   three spaces,    four",
    "  leading and trailing  ",
    " one leading space",
    "line\u2028separator paragraph\u2029separator next\u0085line",
    "bell\x07 escape\x1b[31m delete\x7f",
    "\u2581lower one eighth block \u2581\u2581 is the space of SentencePiece",
    "<s> </s> <pad> <unk> <mask> [CLS] [SEP] [PAD] [UNK] [MASK]",
    "text<mask>text </s>text",
    "query: passage: Instruct: not a prompt\nQuery: at all",
    "\U0001d4d7\U0001d4ee\U0001d4f5\U0001d4f5\U0001d4f8 \U0001f170\U0001f171",
    "\U00020bb7\u91ce\u5bb6",
    "\u0130stanbul \u0131\u015f\u0131k \u1e9e \u00df \u03a3\u03c3\u03c2 \u01c5",
    "unassigned \U000e0fff private \ue000 noncharacter \ufdd0",
    "Pneumonoultramicroscopicsilicovolcanoconiosis" * 4,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!???...,,,;;;---___***",
    ".",
    "x",
    "7",
    "\u4e00",
    "\U0001f600",
)

# Measured with the tokenizers of tests/checkpoints.py: 1.3 for WordPiece, 2.0 for unigram.
TOKENS_PER_UNIT = 1.6
LETTERS_PER_UNSPACED_UNIT = 3
UNSPACED = ("thai", "chinese", "japanese")


def all_texts() -> list[str]:
    """Every sentence and oddity, in a fixed order."""
    return [text for texts in SENTENCES.values() for text in texts] + list(ODDITIES)


def mixed_texts(count: int, *, seed: int = 0, longest: int = 2000) -> list[str]:
    """`count` distinct texts of lognormal length, from 1 to about `longest` tokens.

    One or two scripts a text; with three texts or more, both extreme lengths occur.
    """
    random = np.random.default_rng(seed)
    vocabulary = [_units(language) for language in SENTENCES]
    texts: dict[str, None] = {}
    for tokens in _lengths(count, longest, random):
        text = _compose(vocabulary, tokens, random)
        while text in texts:
            text = f"{text} {_compose(vocabulary, 1, random)}"
        texts[text] = None
    return list(texts)


def _units(language: str) -> list[str]:
    words = [word for sentence in SENTENCES[language] for word in sentence.split()]
    if language not in UNSPACED:
        return words
    step = LETTERS_PER_UNSPACED_UNIT
    return [word[start : start + step] for word in words for start in range(0, len(word), step)]


def _lengths(count: int, longest: int, random: np.random.Generator) -> np.ndarray:
    centre, spread = np.log(longest) / 2, np.log(longest) / 6
    lengths = np.exp(np.clip(random.normal(centre, spread, count), 0, np.log(longest)))
    if count > 2:
        lengths[:2] = 1, longest
    return random.permutation(lengths)


def _compose(vocabulary: list[list[str]], tokens: float, random: np.random.Generator) -> str:
    scripts = random.choice(len(vocabulary), size=random.integers(1, 3), replace=False)
    pool = [unit for script in scripts for unit in vocabulary[script]]
    length = max(1, round(tokens / TOKENS_PER_UNIT))
    return " ".join(random.choice(pool, size=length).tolist())
