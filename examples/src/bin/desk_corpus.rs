//! Writes what `examples/model/train.py` reads: the vocabulary, the training
//! corpus and the held-out text, as token ids.
//!
//! `cargo run --release -p examples --bin desk_corpus -- DIRECTORY [DOCUMENTS]`
#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use desk_model::{BOS, ChatTemplate, EOS, SplitMix64, Tokenizer, desk};
use std::error::Error;
use std::fs;
use std::path::Path;

const VOCABULARY: usize = 768;
/// Marks ids of an answer in prose.
const PROSE: u8 = 1;
/// Marks ids of an answer to a system prompt.
const INSTRUCTED: u8 = 2;
const CROP_SEED: u64 = 0x0C20_9000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let directory = args
        .next()
        .ok_or("usage: desk_corpus DIRECTORY [DOCUMENTS]")?;
    let directory = Path::new(&directory);
    let documents: u64 = args.next().map_or(Ok(250_000), |count| count.parse())?;
    fs::create_dir_all(directory)?;

    let template = ChatTemplate::default();
    let sample: Vec<String> = (0..20_000)
        .map(|index| desk::training(&template, index))
        .map(|document| document.prompt + &document.reply)
        .collect();
    // a vocabulary that lies there already is kept, so that weights stay usable
    let vocabulary = directory.join("tokenizer.json");
    let tokenizer = if vocabulary.exists() {
        Tokenizer::from_json(&fs::read_to_string(&vocabulary)?)?
    } else {
        let tokenizer = Tokenizer::train(sample.iter().map(String::as_str), VOCABULARY);
        fs::write(&vocabulary, tokenizer.to_json()? + "\n")?;
        tokenizer
    };

    let mut corpus = Rows::default();
    for index in 0..documents {
        let document = desk::training(&template, index);
        let mut prompt = vec![BOS];
        prompt.extend(tokenizer.encode(&document.prompt));
        let mut rng = SplitMix64::nth(CROP_SEED, index);
        if document.may_crop && rng.chance(70) {
            let keep = 5 + rng.below(prompt.len() - 5);
            prompt.drain(..prompt.len() - keep);
        }
        let mut reply = tokenizer.encode(&document.reply);
        reply.push(EOS);
        let kind = if document.may_crop { PROSE } else { INSTRUCTED };
        corpus.push(&prompt, &reply, kind);
    }
    corpus.write(directory, "train")?;

    let mut heldout = Rows::default();
    for text in desk::heldout(&template, 300) {
        let mut ids = vec![BOS];
        ids.extend(tokenizer.encode(&text));
        heldout.bytes += text.len();
        heldout.push(&ids, &[], PROSE);
    }
    heldout.write(directory, "heldout")?;

    println!(
        "{documents} documents, {} tokens, longest {}",
        corpus.ids.len(),
        corpus.longest
    );
    println!(
        "held out: {} bytes in {} tokens",
        heldout.bytes,
        heldout.ids.len()
    );
    for index in 0..4 {
        let document = desk::training(&template, index);
        println!("---\n{}{}", document.prompt, document.reply);
    }
    for long in [false, true] {
        let lengths: Vec<usize> = desk::live(0, 2_000)
            .into_iter()
            .filter(|request| request.long == long)
            .map(|request| tokenizer.encode(&template.render("", &request.text)).len())
            .collect();
        println!(
            "long {long}: {:?} to {:?} tokens",
            lengths.iter().min(),
            lengths.iter().max()
        );
    }
    Ok(())
}

#[derive(Default)]
struct Rows {
    ids: Vec<u16>,
    /// Which kind of answer the id belongs to, 0 for none.
    answers: Vec<u8>,
    ends: Vec<u32>,
    longest: usize,
    bytes: usize,
}

impl Rows {
    fn push(&mut self, prompt: &[u16], reply: &[u16], kind: u8) {
        self.ids.extend_from_slice(prompt);
        self.ids.extend_from_slice(reply);
        self.answers.resize(self.answers.len() + prompt.len(), 0);
        self.answers.resize(self.ids.len(), kind);
        self.ends
            .push(u32::try_from(self.ids.len()).unwrap_or(u32::MAX));
        self.longest = self.longest.max(prompt.len() + reply.len());
    }

    fn write(&self, directory: &Path, name: &str) -> std::io::Result<()> {
        let ids: Vec<u8> = self.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let ends: Vec<u8> = self.ends.iter().flat_map(|end| end.to_le_bytes()).collect();
        fs::write(directory.join(format!("{name}.ids.u16")), ids)?;
        fs::write(directory.join(format!("{name}.answers.u8")), &self.answers)?;
        fs::write(directory.join(format!("{name}.ends.u32")), ends)?;
        fs::write(
            directory.join(format!("{name}.bytes.txt")),
            format!("{}\n", self.bytes),
        )
    }
}
