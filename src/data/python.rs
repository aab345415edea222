//! The corners of Python that chat templates lean on: how `json.dumps`, `str` and `strftime` write things.
//!
//! Templates are written for Jinja2 inside transformers; what they print goes into the tokens, to the byte.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, escape_formatter};

/// Nesting no chat reaches; deeper would overflow the stack.
const MAX_DEPTH: usize = 200;

fn fail(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// A JSON value as a template sees it, its keys in the order they were written.
pub fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(flag) => Value::from(*flag),
        serde_json::Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(n), ..) => Value::from(n),
            (_, Some(n), _) => Value::from(n),
            (.., n) => Value::from(n.unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => Value::from(items.iter().map(from_json).collect::<Vec<_>>()),
        serde_json::Value::Object(map) => from_object(map),
    }
}

/// A JSON object as a template sees it.
pub fn from_object(map: &serde_json::Map<String, serde_json::Value>) -> Value {
    Value::from_pairs(map.iter().map(|(key, value)| (key.as_str(), from_json(value))))
}

/// Prints a value as Jinja2 does: `None`, `True`, `1e+16`. A list or a map is refused, for what Python prints of it
/// (its `repr`) is never meant to be in a prompt: it happens when content is a list and the template expects text.
pub fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::None => "None".to_string(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_string(),
        ValueKind::Number if !value.is_integer() => number(value)?,
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => {
            return Err(fail(format!("the template prints a {}; it expects text there", value.kind())));
        }
        _ => return escape_formatter(out, state, value),
    };
    out.write_str(&text).map_err(Error::from)
}

/// `json.dumps(value, ensure_ascii=, indent=, separators=, sort_keys=)`, the filter `tojson` of transformers.
pub fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match (separators.as_deref(), indent) {
        (Some([item, key]), _) => (item.clone(), key.clone()),
        (Some(_), _) => return Err(fail("tojson: `separators` must be a pair")),
        (None, None) => (", ".to_string(), ": ".to_string()),
        (None, Some(_)) => (",".to_string(), ": ".to_string()),
    };
    let mut writer = JsonWriter {
        out: String::new(),
        item,
        key,
        indent,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(writer.out)
}

struct JsonWriter {
    out: String,
    item: String,
    key: String,
    indent: Option<usize>,
    ascii: bool,
    sorted: bool,
}

impl JsonWriter {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(fail("tojson: the value is nested too deeply"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)?),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push('[');
                let mut length = 0;
                for item in value.try_iter()? {
                    self.separate(length, depth + 1);
                    self.value(&item, depth + 1)?;
                    length += 1;
                }
                self.close(length, depth, ']');
            }
            ValueKind::Map => {
                self.out.push('{');
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                for (i, key) in keys.iter().enumerate() {
                    self.separate(i, depth + 1);
                    let Some(name) = key.as_str() else { return Err(fail("tojson: a key is not a string")) };
                    self.string(name);
                    self.out.push_str(&self.key.clone());
                    self.value(&value.get_item(key)?, depth + 1)?;
                }
                self.close(keys.len(), depth, '}');
            }
            kind => return Err(fail(format!("tojson: cannot write {kind} as JSON"))),
        }
        Ok(())
    }

    fn separate(&mut self, index: usize, depth: usize) {
        if index > 0 {
            self.out.push_str(&self.item.clone());
        }
        self.new_line(depth);
    }

    fn close(&mut self, length: usize, depth: usize, bracket: char) {
        if length > 0 {
            self.new_line(depth);
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent.saturating_mul(depth).min(4096)));
        }
    }

    fn string(&mut self, text: &str) {
        // serde_json escapes what Python escapes, in the same spelling.
        let quoted = serde_json::Value::from(text).to_string();
        if !self.ascii {
            return self.out.push_str(&quoted);
        }
        for c in quoted.chars() {
            match c {
                ' '..='~' => self.out.push(c),
                _ => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| self.out.push_str(&format!("\\u{unit:04x}"))),
            }
        }
    }
}

/// `repr` of a number: Rust chooses the same digits and changes to exponents at the same sizes, but writes `1e16`
/// where Python writes `1e+16`, and `1e-5` for `1e-05`.
fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let text = format!("{:?}", f64::try_from(value.clone())?);
    let Some((digits, exponent)) = text.split_once('e') else { return Ok(text) };
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
    Ok(format!("{digits}e{sign}{exponent:0>2}"))
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Year, month (1..12) and day (1..31) of a day counted from 1970-01-01 in the Gregorian calendar (Howard Hinnant,
/// "chrono-compatible low-level date algorithms": years begin in March, so that a leap day is a year's last).
fn civil(day: i64) -> (i64, i64, i64) {
    let day = day + 719_468;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// `strftime` in the C locale for a time in seconds since 1970-01-01 UTC, at most some 10,000 years away.
pub fn strftime(format: &str, seconds: i64) -> Result<String, Error> {
    let seconds = seconds.clamp(-300_000_000_000, 300_000_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let weekday = DAYS[(days + 4).rem_euclid(7) as usize];
    let month_name = MONTHS[(month - 1) as usize];
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match rest.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year.rem_euclid(100))),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('H') => out.push_str(&format!("{hour:02}")),
            Some('I') => out.push_str(&format!("{:02}", (hour + 11) % 12 + 1)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('M') => out.push_str(&format!("{minute:02}")),
            Some('S') => out.push_str(&format!("{second:02}")),
            Some('F') => out.push_str(&format!("{year}-{month:02}-{day:02}")),
            Some('T') => out.push_str(&format!("{hour:02}:{minute:02}:{second:02}")),
            Some('%') => out.push('%'),
            other => return Err(fail(format!("strftime_now: no directive %{}", other.unwrap_or(' ')))),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // `date -u -d @N '+%Y-%m-%d %a %j ...'`
        assert_eq!(strftime("%d %b %Y %a %H:%M:%S", 951_826_154).unwrap(), "29 Feb 2000 Tue 12:09:14");
        assert_eq!(strftime("%A %d %B %y %I %p %%", -1).unwrap(), "Wednesday 31 December 69 11 PM %");
        assert_eq!(strftime("%F %T", 4_107_542_400).unwrap(), "2100-03-01 00:00:00");
        assert!(strftime("%Q", 0).is_err());
    }

    #[test]
    fn numbers_are_written_as_python_does() {
        for (value, text) in [(1.0, "1.0"), (0.1, "0.1"), (1e16, "1e+16"), (1e-5, "1e-05"), (1.5e300, "1.5e+300")] {
            assert_eq!(number(&Value::from(value)).unwrap(), text);
        }
        assert_eq!(number(&Value::from(0.0001)).unwrap(), "0.0001");
        assert_eq!(number(&Value::from(123_456_789_012_345_680.0)).unwrap(), "1.2345678901234568e+17");
        assert_eq!(number(&Value::from(-3)).unwrap(), "-3");
    }
}
