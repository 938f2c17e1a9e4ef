use serde_json::json;

use super::*;

fn value() -> Value {
    json!({
        "Name": "/web",
        "Count": 3,
        "Ratio": 1.5,
        "Running": true,
        "Nothing": null,
        "Args": ["-c", "sleep 1"],
        "Labels": {"b": "2", "a": "1"},
        "State": {"Status": "running", "Pid": 42},
        "Mounts": [{"Source": "/x"}, {"Source": "/y"}],
    })
}

fn render(template: &str) -> String {
    Template::parse(template)
        .and_then(|template| template.render(&value()))
        .unwrap_or_else(|error| panic!("{template}: {error}"))
}

fn fails(template: &str) -> TemplateError {
    match Template::parse(template).and_then(|template| template.render(&value())) {
        Ok(text) => panic!("{template} gave {text:?}"),
        Err(error) => error,
    }
}

/// The expected texts are what Go 1's `text/template` prints for the same value.
#[test]
fn templates_print_what_go_prints() {
    for (template, text) in [
        ("plain", "plain"),
        ("{{.Name}}", "/web"),
        ("<{{ .State.Status }}>", "<running>"),
        ("{{.Count}} {{.Ratio}} {{.Running}}", "3 1.5 true"),
        ("{{.Args}} {{.Labels}}", "[-c sleep 1] map[a:1 b:2]"),
        ("{{json .Args}}", r#"["-c","sleep 1"]"#),
        ("{{.Args | json}}", r#"["-c","sleep 1"]"#),
        ("{{join .Args \", \"}}", "-c, sleep 1"),
        ("{{.State.Status | upper | printf \"%s!\"}}", "RUNNING!"),
        ("{{title \"a b-c\"}} {{lower \"AB\"}}", "A B-C ab"),
        ("{{len .Args}}{{len .Labels}}{{len .Name}}", "224"),
        ("{{index .Args 1}} {{index .Labels \"a\"}}", "sleep 1 1"),
        ("{{index .Labels \"none\"}}", ""),
        ("{{(index .Mounts 1).Source}}", "/y"),
        ("{{index .Mounts 0 \"Source\"}}", "/x"),
        ("{{range .Mounts}}{{.Source}};{{end}}", "/x;/y;"),
        (
            "{{range $i, $m := .Mounts}}{{$i}}{{$m.Source}}{{$.Count}} {{end}}",
            "0/x3 1/y3 ",
        ),
        (
            "{{range $k, $v := .Labels}}{{$k}}={{$v}},{{end}}",
            "a=1,b=2,",
        ),
        ("{{range .Nothing}}x{{else}}none{{end}}", "none"),
        ("{{if .Running}}up{{else}}down{{end}}", "up"),
        (
            "{{if not .Running}}a{{else if eq .Count 3}}b{{else}}c{{end}}",
            "b",
        ),
        ("{{if and .Running (gt .Count 2)}}yes{{end}}", "yes"),
        ("{{or \"\" .Name}} {{and .Count 0}}", "/web 0"),
        (
            "{{eq .State.Status \"dead\" \"running\"}}{{ne 1 2}}{{lt 1 2}}{{ge 1 2}}",
            "truetruetruefalse",
        ),
        ("{{with .State}}{{.Pid}}{{end}}", "42"),
        ("{{with $s := .State}}{{$s.Pid}}{{end}}", "42"),
        ("{{$x := .Count}}{{$x}}{{$x = 4}}{{$x}}", "34"),
        ("a {{- .Count -}} b", "a3b"),
        ("a{{/* nothing }} */}}b", "ab"),
        ("{{println .Name}}{{print 1 2}}", "/web\n1 2"),
        ("{{\"q\\\"}}\"}}{{`raw\\n`}}", "q\"}}raw\\n"),
        ("{{slice .Name 1}} {{slice .Name 1 2}}", "web w"),
        ("{{truncate .Name 2}}|{{pad .Name 1 2}}|", "/w| /web  |"),
        ("{{index (split \"a,b\" \",\") 1}}", "b"),
        (
            "{{printf \"%-5s|%3d|%q|%%\" .Name .Count \"x\"}}",
            "/web |  3|\"x\"|%",
        ),
        ("{{.Labels.a}}{{.Labels \"b\"}}", "12"),
        ("{{.Nothing}}", "<nil>"),
        ("{{-3}}", "-3"),
    ] {
        assert_eq!(render(template), text, "{template}");
    }
}

#[test]
fn template_that_is_wrong_says_where() {
    for (template, part) in [
        ("{{.Name", "is not closed"),
        ("{{\"a}}", "not closed"),
        ("{{.Nme}}", "did you mean \"Name\""),
        ("{{.name}}", "did you mean \"Name\""),
        ("{{.Zzzzzzzz}}", "there are Args, Count"),
        ("{{.Name.First}}", "in a text"),
        ("{{jsn .}}", "did you mean \"json\""),
        ("{{range .Count}}{{end}}", "not a number"),
        ("{{if .Name}}", "no {{end}}"),
        ("{{range .Args}}{{else}}", "no {{end}}"),
        ("{{end}}", "outside of a block"),
        ("{{else}}", "outside of a block"),
        ("{{}}", "ends where a value"),
        ("{{.Name |}}", "ends where a value"),
        ("{{(.Name}}", "ends where )"),
        ("{{.Name)}}", "not understood"),
        ("{{$x}}", "no variable $x"),
        ("{{index .Args 7}}", "outside of a list of 2"),
        ("{{join .Name \",\"}}", "a list and a text"),
        ("{{lt .Name 1}}", "two numbers"),
        ("{{.Name & 1}}", "not understood"),
    ] {
        let error = fails(template).to_string();
        assert!(error.contains(part), "{template}: {error}");
    }
}

#[test]
fn nesting_and_output_have_bounds() {
    let deep = format!("{}{}{}", "{{if 1}}".repeat(60), "x", "{{end}}".repeat(60));
    assert_eq!(fails(&deep), TemplateError::TooDeep);
    let brackets = format!("{{{{{}1{}}}}}", "(".repeat(1000), ")".repeat(1000));
    assert_eq!(fails(&brackets), TemplateError::TooDeep);
    let long = Value::Array(vec![Value::Null; 100]);
    let loops = "{{range $}}".repeat(6) + &"x".repeat(100) + &"{{end}}".repeat(6);
    let template = Template::parse(&loops).unwrap();
    assert_eq!(template.render(&long), Err(TemplateError::TooLong));
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[{}.$|()\"`a-zA-Z0-9 :=,/*-]{0,60}") {
        if let Ok(template) = Template::parse(&text) {
            let _ = template.render(&value());
        }
    }

    #[test]
    fn words_in_any_order_are_read_or_refused(
        words in proptest::collection::vec(
            proptest::sample::select(vec![
                "{{", "}}", "if", "else", "end", "range", "with", " ", ".", ".Name", "$", "$x", ":=", "|",
                "(", ")", "json", "index", "1", "\"", "-", "x", "printf", "%5s", ",", "é",
            ]),
            0..24,
        ),
    ) {
        if let Ok(template) = Template::parse(&words.concat()) {
            let _ = template.render(&value());
        }
    }

    #[test]
    fn text_without_actions_is_itself(text in "[^{]{0,40}") {
        proptest::prop_assert_eq!(Template::parse(&text).unwrap().render(&Value::Null).unwrap(), text);
    }
}
