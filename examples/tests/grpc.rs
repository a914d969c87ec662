//! A tonic server with the layer: each stream is answered by its version and recorded by the status at its end.

use std::process::Command;

#[test]
fn streams_are_recorded_by_their_status() {
    let ran = Command::new(env!("CARGO_BIN_EXE_grpc")).output().unwrap();
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(
        ran.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    // Requests, ok, broken off, messages of each side: 40 in all, 4 of them broken off after a message, 3 messages in the others.
    let mut sums = [0_u32; 4];
    for line in said.lines() {
        let numbers = line.split(' ').filter_map(|word| word.parse::<u32>().ok());
        for (sum, number) in sums.iter_mut().zip(numbers) {
            *sum += number;
        }
        assert!(line.contains(" requests"), "{said}");
    }
    assert_eq!(sums, [40, 36, 4, 36 * 3 + 4], "{said}");
    assert!(
        said.contains("candidate: ") && said.contains("baseline: "),
        "{said}"
    );
}
