//! The templates of containerd's formatted mounts (docs/mounts.md, "Format Transformer").
//!
//! Of Go's text/template only what containerd documents: `{{ mount N }}`, `{{ source N }}`, `{{ target N }}`,
//! `{{ overlay A B }}`. Pure; it is told what the earlier mounts are.

/// An earlier mount, as a template can refer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EarlierMount {
    /// Where it is mounted.
    pub mount_point: String,
    /// Its source, where it has one by name.
    pub source: Option<String>,
}

/// Why a template cannot be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// No `}}` after a `{{`.
    #[error("a `{{{{` is not closed in {text:?}")]
    Unclosed {
        /// The text.
        text: String,
    },
    /// Not one of the values.
    #[error(
        "`{{{{ {expression} }}}}` is not one of `mount N`, `source N`, `target N`, `overlay A B`"
    )]
    Unknown {
        /// What is between the braces.
        expression: String,
    },
    /// A mount that is not before this one.
    #[error(
        "`{{{{ {expression} }}}}` refers to mount {index}, but only mounts before it count, {available} of them"
    )]
    NotEarlier {
        /// What is between the braces.
        expression: String,
        /// The index.
        index: usize,
        /// How many there are.
        available: usize,
    },
    /// A device's source has no name yet.
    #[error(
        "`{{{{ {expression} }}}}` asks for the source of a device, which the guest alone knows"
    )]
    NoSource {
        /// What is between the braces.
        expression: String,
    },
    /// Too much text.
    #[error("a filled-in option is longer than {MAX_EXPANDED_BYTES} bytes")]
    TooLong,
}

/// The longest option after filling in. The agent hands layers over one by one (fsconfig(2)), so that a page is no limit.
pub(crate) const MAX_EXPANDED_BYTES: usize = 64 << 10;

/// Fills in `text`.
///
/// # Errors
/// [`TemplateError`].
pub(crate) fn expand(text: &str, earlier: &[EarlierMount]) -> Result<String, TemplateError> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let (expression, after) =
            after
                .split_once("}}")
                .ok_or_else(|| TemplateError::Unclosed {
                    text: text.to_owned(),
                })?;
        out.push_str(&value(expression.trim(), earlier)?);
        if out.len() > MAX_EXPANDED_BYTES {
            return Err(TemplateError::TooLong);
        }
        rest = after;
    }
    out.push_str(rest);
    if out.len() > MAX_EXPANDED_BYTES {
        return Err(TemplateError::TooLong);
    }
    Ok(out)
}

fn value(expression: &str, earlier: &[EarlierMount]) -> Result<String, TemplateError> {
    let unknown = || TemplateError::Unknown {
        expression: expression.to_owned(),
    };
    let index = |word: &str| word.parse::<usize>().map_err(|_| unknown());
    let nth = |index: usize| {
        earlier.get(index).ok_or_else(|| TemplateError::NotEarlier {
            expression: expression.to_owned(),
            index,
            available: earlier.len(),
        })
    };
    let words: Vec<&str> = expression.split_ascii_whitespace().collect();
    match words.as_slice() {
        ["mount" | "target", n] => Ok(nth(index(n)?)?.mount_point.clone()),
        ["source", n] => nth(index(n)?)?
            .source
            .clone()
            .ok_or_else(|| TemplateError::NoSource {
                expression: expression.to_owned(),
            }),
        ["overlay", from, to] => {
            let (from, to) = (index(from)?, index(to)?);
            let (low, high) = (from.min(to), from.max(to));
            // Both ends are checked, so the range is within what there is.
            nth(high)?;
            let mut points: Vec<&str> = earlier
                .iter()
                .take(high + 1)
                .skip(low)
                .map(|mount| mount.mount_point.as_str())
                .collect();
            if from > to {
                points.reverse();
            }
            Ok(points.join(":"))
        }
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mounts(count: usize) -> Vec<EarlierMount> {
        (0..count)
            .map(|n| EarlierMount {
                mount_point: format!("/m/{n}"),
                source: (n % 2 == 0).then(|| format!("s{n}")),
            })
            .collect()
    }

    #[test]
    fn template_values_are_filled_in() {
        let earlier = mounts(3);
        let of = |text| expand(text, &earlier).unwrap();
        assert_eq!(of("lowerdir={{ overlay 0 2 }}"), "lowerdir=/m/0:/m/1:/m/2");
        assert_eq!(of("lowerdir={{overlay 2 0}}"), "lowerdir=/m/2:/m/1:/m/0");
        assert_eq!(of("lowerdir={{ overlay 1 1 }}"), "lowerdir=/m/1");
        assert_eq!(of("{{ mount 2 }}/upper:{{target 0}}"), "/m/2/upper:/m/0");
        assert_eq!(of("{{ source 2 }}"), "s2");
        assert_eq!(of("plain"), "plain");
    }

    #[test]
    fn template_that_cannot_be_filled_in_is_refused() {
        let earlier = mounts(2);
        let of = |text| expand(text, &earlier).unwrap_err();
        assert!(matches!(
            of("{{ mount 2 }}"),
            TemplateError::NotEarlier { index: 2, .. }
        ));
        assert!(matches!(
            of("{{ overlay 0 9 }}"),
            TemplateError::NotEarlier { index: 9, .. }
        ));
        assert!(matches!(of("{{ mount }}"), TemplateError::Unknown { .. }));
        assert!(matches!(
            of("{{ mount -1 }}"),
            TemplateError::Unknown { .. }
        ));
        assert!(matches!(of("{{ exec 1 }}"), TemplateError::Unknown { .. }));
        assert!(matches!(of("{{ mount 1"), TemplateError::Unclosed { .. }));
        assert!(matches!(
            of("{{ source 1 }}"),
            TemplateError::NoSource { .. }
        ));
    }

    proptest! {
        #[test]
        fn template_any_text_never_panics_and_stays_bounded(text in "(\\{\\{|\\}\\}| |mount|overlay|source|[0-9]{1,3}|[a-z/:=]){0,40}", count in 0usize..40) {
            if let Ok(out) = expand(&text, &mounts(count)) {
                prop_assert!(out.len() <= MAX_EXPANDED_BYTES);
                prop_assert!(!out.contains("{{"));
            }
        }

        #[test]
        fn template_overlay_holds_each_mount_between_its_ends_once(a in 0usize..20, b in 0usize..20) {
            let out = expand(&format!("{{{{ overlay {a} {b} }}}}"), &mounts(20)).unwrap();
            let points: Vec<&str> = out.split(':').collect();
            prop_assert_eq!(points.len(), a.abs_diff(b) + 1);
            prop_assert_eq!(points[0], format!("/m/{a}"));
            prop_assert_eq!(points[points.len() - 1], format!("/m/{b}"));
        }
    }
}
