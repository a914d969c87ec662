//! Weight files: safetensors with `F32` or `F16` tensors.

use super::error::LmError;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;

/// One tensor, in `f32` whatever the file has.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Tensor {
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its values, row by row.
    pub values: Vec<f32>,
}

/// The tensors of a checkpoint by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Weights {
    tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// Reads a safetensors file.
    ///
    /// # Errors
    ///
    /// [`LmError::Weights`] if it is none, or has a value that is no number;
    /// [`LmError::Tensor`] for a type other than `F32` and `F16`.
    pub fn read(bytes: &[u8]) -> Result<Self, LmError> {
        let file =
            SafeTensors::deserialize(bytes).map_err(|error| LmError::Weights(error.to_string()))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let values: Vec<f32> = match view.dtype() {
                Dtype::F32 => view
                    .data()
                    .as_chunks()
                    .0
                    .iter()
                    .map(|chunk| f32::from_le_bytes(*chunk))
                    .collect(),
                Dtype::F16 => view
                    .data()
                    .as_chunks()
                    .0
                    .iter()
                    .map(|chunk| widen(u16::from_le_bytes(*chunk)))
                    .collect(),
                other => {
                    return Err(LmError::Tensor {
                        name: name.to_owned(),
                        found: format!("{other:?}"),
                        wanted: "F32 or F16".to_owned(),
                    });
                }
            };
            if values.iter().any(|value| !value.is_finite()) {
                return Err(LmError::Weights(format!(
                    "tensor `{name}` has a value that is no finite number"
                )));
            }
            tensors.insert(
                name.to_owned(),
                Tensor {
                    shape: view.shape().to_vec(),
                    values,
                },
            );
        }
        Ok(Self { tensors })
    }

    /// Writes a safetensors file of `F16` tensors, the same bytes each time.
    ///
    /// # Errors
    ///
    /// [`LmError::Weights`] if a shape does not fit its values.
    pub fn write(&self) -> Result<Vec<u8>, LmError> {
        let stored: Vec<(&String, &Tensor, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, tensor)| {
                (
                    name,
                    tensor,
                    tensor
                        .values
                        .iter()
                        .flat_map(|&value| narrow(value).to_le_bytes())
                        .collect(),
                )
            })
            .collect();
        let mut views = Vec::with_capacity(stored.len());
        for (name, tensor, bytes) in &stored {
            let view = TensorView::new(Dtype::F16, tensor.shape.clone(), bytes)
                .map_err(|error| LmError::Weights(error.to_string()))?;
            views.push((name.as_str(), view));
        }
        safetensors::serialize(views, None).map_err(|error| LmError::Weights(error.to_string()))
    }

    /// The tensor `name`, which must have `shape`.
    ///
    /// # Errors
    ///
    /// [`LmError::MissingTensor`] or [`LmError::Tensor`].
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<&[f32], LmError> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| LmError::MissingTensor(name.to_owned()))?;
        if tensor.shape != shape {
            return Err(LmError::Tensor {
                name: name.to_owned(),
                found: format!("{:?}", tensor.shape),
                wanted: format!("{shape:?}"),
            });
        }
        Ok(&tensor.values)
    }

    /// All tensors, to look at or to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Tensor)> {
        self.tensors
            .iter_mut()
            .map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// How many numbers there are in all.
    pub fn parameters(&self) -> usize {
        self.tensors
            .values()
            .map(|tensor| tensor.values.len())
            .sum()
    }
}

/// IEEE half precision to single; exact.
fn widen(half: u16) -> f32 {
    let sign = if half & 0x8000 == 0 { 1.0_f32 } else { -1.0 };
    let exponent = u32::from((half >> 10) & 0x1F);
    let fraction = u32::from(half & 0x3FF);
    let magnitude = match exponent {
        // subnormal: fraction * 2^-24
        0 => fraction as f32 * f32::from_bits((127 - 24) << 23),
        31 if fraction == 0 => f32::INFINITY,
        31 => f32::NAN,
        _ => f32::from_bits(((exponent + 127 - 15) << 23) | (fraction << 13)),
    };
    sign * magnitude
}

/// Single precision to half, to the nearest, ties to even.
fn narrow(single: f32) -> u16 {
    let bits = single.to_bits();
    let sign = u16::try_from((bits >> 16) & 0x8000).unwrap_or(0);
    let magnitude = bits & 0x7FFF_FFFF;
    // 65520, from where on the nearest half is infinite
    if magnitude >= 0x477F_F000 {
        return sign
            | if magnitude > 0x7F80_0000 {
                0x7E00
            } else {
                0x7C00
            };
    }
    let rounded = if magnitude < 0x3880_0000 {
        // below 2^-14: adding one half lets the hardware round to 2^-24
        let shifted = f32::from_bits(magnitude) + 0.5;
        shifted.to_bits() - 0.5_f32.to_bits()
    } else {
        let odd = (magnitude >> 13) & 1;
        (magnitude - ((127 - 15) << 23) + 0xFFF + odd) >> 13
    };
    sign | u16::try_from(rounded).unwrap_or(0x7C00)
}

#[cfg(test)]
mod tests {
    use super::{Weights, narrow, widen};
    use crate::LmError;

    #[test]
    fn halves_survive_the_round_trip() {
        for half in 0..=u16::MAX {
            let wide = widen(half);
            if !wide.is_nan() {
                assert_eq!(narrow(wide), half, "{half:#x}");
            }
        }
        assert_eq!(narrow(1.0 + 1.0 / 2048.0), 0x3C00, "a tie goes to even");
        assert_eq!(narrow(1.0 + 3.0 / 2048.0), 0x3C02, "a tie goes to even");
        assert_eq!(narrow(65519.0), 0x7BFF);
        assert_eq!(narrow(65520.0), 0x7C00);
    }

    #[test]
    fn what_is_no_weight_file_is_refused() {
        for bytes in [
            &b""[..],
            &[0xFF; 64],
            b"\x10\0\0\0\0\0\0\0{\"a\":1}         ",
        ] {
            assert!(matches!(Weights::read(bytes), Err(LmError::Weights(_))));
        }
    }
}
