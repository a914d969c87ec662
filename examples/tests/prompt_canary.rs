//! A prompt that a program cannot read goes away by itself, on one engine.

#[test]
fn a_prompt_that_breaks_the_format_is_rolled_back_before_many_see_it() {
    let ran = std::process::Command::new(env!("CARGO_BIN_EXE_prompt_canary"))
        .output()
        .unwrap();
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(ran.status.success(), "{said}");
    let said = said.strip_prefix("rolled back after ").unwrap();
    let numbers = said.split(' ').filter_map(|word| word.parse().ok());
    let numbers = numbers.collect::<Vec<u32>>();
    // Every answer of the candidate is bad, and a fifth of the letters go to it: a dozen of them are evidence enough.
    let [letters, harmed] = numbers[..] else {
        panic!("{said}");
    };
    assert!((1..200).contains(&harmed) && harmed < letters, "{said}");
}
