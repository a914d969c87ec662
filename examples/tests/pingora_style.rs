//! A proxy with filter phases over real sockets: every request is answered by its version and recorded once, however it ends.

use std::process::Command;

#[test]
fn requests_through_filter_phases_are_recorded_as_they_end() {
    let ran = Command::new(env!("CARGO_BIN_EXE_pingora_style"))
        .output()
        .unwrap();
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(
        ran.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    // Requests, ok, broken off and cancelled, over both versions.
    let mut sums = [0_u32; 4];
    for line in said.lines() {
        let numbers = line.split(' ').filter_map(|word| word.parse::<u32>().ok());
        for (sum, number) in sums.iter_mut().zip(numbers) {
            *sum += number;
        }
    }
    assert_eq!(sums, [100, 50, 25, 25], "{said}");
    assert!(
        said.contains("candidate: ") && said.contains("baseline: "),
        "{said}"
    );
}
