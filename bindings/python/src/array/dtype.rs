//! The types of elements, and their names in DLPack and in the buffer protocol.

use std::ffi::CStr;
use std::fmt;

use crate::dlpack::DataType;

/// A type of elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DType {
    F16,
    BF16,
    F32,
    F64,
    Bool,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
}

/// Every type, with its name, DLPack's code, its bits, and the buffer protocol's letter, which
/// bfloat16 has none of.
const TABLE: [(DType, &str, u8, u8, &CStr); 13] = [
    (DType::F16, "float16", 2, 16, c"e"),
    (DType::BF16, "bfloat16", 4, 16, c""),
    (DType::F32, "float32", 2, 32, c"f"),
    (DType::F64, "float64", 2, 64, c"d"),
    (DType::Bool, "bool", 6, 8, c"?"),
    (DType::I8, "int8", 0, 8, c"b"),
    (DType::I16, "int16", 0, 16, c"h"),
    (DType::I32, "int32", 0, 32, c"i"),
    (DType::I64, "int64", 0, 64, c"q"),
    (DType::U8, "uint8", 1, 8, c"B"),
    (DType::U16, "uint16", 1, 16, c"H"),
    (DType::U32, "uint32", 1, 32, c"I"),
    (DType::U64, "uint64", 1, 64, c"Q"),
];

impl DType {
    fn row(self) -> &'static (Self, &'static str, u8, u8, &'static CStr) {
        // The table has every type, in the order of the enumeration.
        &TABLE[self as usize]
    }

    /// The name that NumPy and PyTorch give it.
    pub(crate) fn name(self) -> &'static str {
        self.row().1
    }

    /// The bytes of an element.
    pub(crate) fn size(self) -> usize {
        usize::from(self.row().3) / 8
    }

    /// DLPack's name.
    pub(crate) fn dlpack(self) -> DataType {
        DataType { code: self.row().2, bits: self.row().3, lanes: 1 }
    }

    /// The type of DLPack's name.
    pub(crate) fn of_dlpack(dtype: DataType) -> Option<Self> {
        let row = TABLE.iter().find(|row| row.0.dlpack() == dtype);
        row.map(|row| row.0)
    }

    /// The buffer protocol's format.
    pub(crate) fn format(self) -> Option<&'static CStr> {
        Some(self.row().4).filter(|format| !format.is_empty())
    }

    /// The type of a format in this machine's byte order, of elements of so many bytes.
    pub(crate) fn of_format(format: &CStr, size: usize) -> Option<Self> {
        let native = if cfg!(target_endian = "little") { b'<' } else { b'>' };
        let letter = match format.to_bytes() {
            [letter] => *letter,
            [order, letter] if [b'@', b'=', b'|', native].contains(order) => *letter,
            _ => return None,
        };
        let signed = |size| match size {
            1 => Some(Self::I8),
            2 => Some(Self::I16),
            4 => Some(Self::I32),
            8 => Some(Self::I64),
            _ => None,
        };
        let unsigned = |size| match size {
            1 => Some(Self::U8),
            2 => Some(Self::U16),
            4 => Some(Self::U32),
            8 => Some(Self::U64),
            _ => None,
        };
        // The size of C's integers is the machine's.
        let found = match letter {
            b'b' | b'h' | b'i' | b'l' | b'q' | b'n' => signed(size),
            b'B' | b'H' | b'I' | b'L' | b'Q' | b'N' => unsigned(size),
            b'e' => Some(Self::F16),
            b'f' => Some(Self::F32),
            b'd' => Some(Self::F64),
            b'?' => Some(Self::Bool),
            _ => None,
        };
        found.filter(|dtype| dtype.size() == size)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
