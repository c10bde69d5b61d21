/** Files as they are stored: safetensors, GGUF and JSON, tensors and their number formats. */
@NullMarked
package org.tornadomoe.checkpoint.file;

import org.jspecify.annotations.NullMarked;
