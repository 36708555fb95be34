"""A small copy of the OPeRA repository: folders, columns and quirks, invented people."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from alignuser_jax.randomness import stable_key

COLUMNS = (
    *("session_id", "action_id", "timestamp", "action_type", "click_type", "semantic_id"),
    *("mouse_position", "element_meta", "url", "window_size", "page_meta", "simplified_html"),
    *("rationale", "products", "input_text", "image"),
)
ANN, BOB = "324934a2-5d58-49d9-bae8-545fba660731", "7b0c9a55-1111-4222-8333-944455556666"

HOME = (
    '<html><head></head><body><div name="nav_bar" role="navigation" aria-label="Primary">'
    '<div name="nav_bar.homepage">Homepage</div><form role="search">'
    '<input name="nav_bar.search_input" placeholder="Search Amazon">'
    '<button name="nav_bar.search_button">Go</button></form></div></body></html>'
)
SEARCH = (
    "<html><head><title>Amazon.com : rice cooker</title></head><body>"
    '<div name="nav_bar"><div name="nav_bar.search_input">rice cooker</div></div>'
    '<div name="search_results.tiger_jbv_s18u"><a name="search_results.tiger_jbv_s18u.'
    'view_product">Tiger JBV-S18U 10-Cup Rice Cooker &amp; Steamer</a>'
    "<span>4.6 out of 5 stars</span><span>$139.99</span><span>In Stock</span></div>"
    '<div name="search_results.zojirushi"><img alt="Zojirushi photo">'
    '<a name="search_results.zojirushi.view_product">Zojirushi Neuro Fuzzy</a>'
    "<span>$1,189.00</span><span>Only 3 left in stock - order soon.</span></div>"
    '<a name="pagination.2">2</a><a name="pagination.2">2</a></body></html>'
)
DETAIL = (
    "<html><head><title>Amazon.com: Tiger JBV-S18U: Kitchen</title></head><body>"
    '<h1>Tiger JBV-S18U 10-Cup Rice Cooker</h1><div name="product_options.color.button_list.'
    'white">White</div><div name="buybox"><span>$139.99</span><span>In Stock</span>'
    '<button name="buybox.purchase_form.add_to_cart">Add to Cart</button></div>'
    '<div name="about_this_item">Cooks rice &lt;b&gt;four&lt;/b&gt; ways</div>'
    '<div name="4_stars_and_above.cuckoo"><a name="4_stars_and_above.cuckoo.product_title">'
    "Cuckoo CR-0632F</a><span>$79.00</span></div></body></html>"
)
CART = (
    '<html><body><div name="active_item_list.tiger.checkbox"></div>'
    '<a name="active_item_list.tiger.product_detail">Tiger JBV-S18U</a>'
    '<button name="check_out">Proceed to checkout</button></body></html>'
)


def session_id(user, start, end):
    return f"{user}_{start}_{end}"


def action(session, number, kind, html, url, **fields):
    row = dict.fromkeys(COLUMNS)
    row |= {
        "session_id": session,
        "action_id": f"{stable_key(session, number):032x}",
        "timestamp": f"2025-04-14T21:{50 + number:02d}:57.792Z",
        "action_type": kind,
        "mouse_position": '{"clientX": 1493, "clientY": 716}',
        "url": url,
        "window_size": '{"width": 1920, "height": 934}',
        "page_meta": '{"search_term": [{"term": ""}], "cart_items": []}',
        "simplified_html": html,
        "rationale": "",
        "products": "",
        "input_text": "",
        "image": "",
    }
    return row | fields


def shopping(user, day, buys=True):
    """One session: a search, a product, its reviews (not on the page), the cart."""
    start = f"2025-04-{day:02d}T21:52:46.756000Z"
    name = session_id(user, start, f"2025-04-{day:02d}T22:10Z")
    cart = {"title": "Bonide Soap, 32 oz", "asin": "B000HCNSWI", "price": "$9.97"}
    meta = {"search_term": [{"term": "rice cooker"}], "cart_items": [cart]}
    tiger = {
        "title": "Tiger JBV-S18U 10-Cup Rice Cooker",
        "asin": "B01L9SD3K0",
        "price": "$139.99",
        "quantity": "1",
        "options": {"Color": "White"},
    }
    rows = [
        action(
            name,
            0,
            "input",
            HOME,
            "https://www.amazon.com/?URL_MASKED",
            semantic_id="nav_bar.search_input",
            input_text="rice cooker",
            rationale="I need a new rice cooker",
        ),
        action(
            name,
            1,
            "click",
            SEARCH,
            "https://www.amazon.com/s?k=rice+cooker&page=2",
            semantic_id="search_results.tiger_jbv_s18u.view_product",
            click_type="product_link",
            page_meta=json.dumps(meta),
            element_meta=json.dumps(
                {"name": "search_results", "data": json.dumps({**tiger, "quantity": ""})}
            ),
        ),
        action(
            name,
            2,
            "click",
            DETAIL,
            "https://www.amazon.com/Tiger-JBV/dp/B01L9SD3K0?URL_MASKED",
            semantic_id="reviews.not_on_this_page",
            click_type="review",
        ),
    ]
    if buys:
        rows.append(
            action(
                name,
                3,
                "click",
                DETAIL,
                "https://www.amazon.com/Tiger-JBV/dp/B01L9SD3K0?URL_MASKED",
                semantic_id="buybox.purchase_form.add_to_cart",
                click_type="purchase",
                products=json.dumps([tiger]),
            )
        )
    rows.append(action(name, 4, "terminate", CART, "https://www.amazon.com/gp/cart/view.html"))
    for row in rows:
        row["timestamp"] = row["timestamp"].replace("2025-04-14", f"2025-04-{day:02d}")
    return rows


SURVEY = {
    "Demographic": {
        "Age": "25-34",
        "Gender": "Female",
        "Occupation": "Nurse",
        "Employment status": "Full-time",
        "Zip code": "02115",
        "Education": "Bachelor's degree",
    },
    "Personality": {"Extraversion": 4, "Openness": 6, "MBTI": "INFJ"},
    "Shopping Preference": {
        "How often do you shop online?": "Weekly",
        "What matters to you?": ["Price", "Reviews"],
        "Prime member": True,
    },
}


def write_opera(folder, rows_by_split=None, kind="filtered", users=None, row_group_size=3):
    """The folder with `OPeRA_<kind>` in it."""
    if rows_by_split is None:
        rows_by_split = {
            "train": [row for day in (14, 16, 18) for row in shopping(ANN, day, day != 16)]
            + shopping(BOB, 15, False),
            "test": shopping(ANN, 20),
        }
    if users is None:
        users = [
            {"user_id": ANN, "survey": json.dumps(SURVEY), "raw_survey": "{}",
             "interview_transcript": "",
             "interview_transcript_processed": "### Shopping\nOften."},
            {"user_id": BOB, "survey": "{}", "raw_survey": "{}", "interview_transcript": "",
             "interview_transcript_processed": ""},
        ]  # fmt: skip
    root = folder / f"OPeRA_{kind}"
    strings = pa.schema([(name, pa.string()) for name in COLUMNS])
    for split, rows in rows_by_split.items():
        for part in ("action", f"session/{split}", f"user/{split}"):
            (root / part).mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.Table.from_pylist(rows, strings),
            root / "action" / f"{split}-00000-of-00001.parquet",
            row_group_size=row_group_size,
        )
        counts = {}
        for row in rows:
            counts[row["session_id"]] = counts.get(row["session_id"], 0) + 1
        sessions = [
            {"session_id": name, "user_id": (name or "").split("_")[0], "action_count": count}
            for name, count in counts.items()
        ]
        own = pa.schema(
            [
                ("session_id", pa.string()),
                ("user_id", pa.string()),
                ("action_count", pa.int64()),
            ]
        )
        table = pa.Table.from_pylist(sessions, own)
        pq.write_table(table, root / f"session/{split}/{split}.parquet")
        pq.write_table(pa.Table.from_pylist(users), root / f"user/{split}/{split}.parquet")
    return folder
