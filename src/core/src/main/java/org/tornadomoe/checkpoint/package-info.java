/** Checkpoints in: safetensors files, the model families and their tensor names, vLLM's case files. */
@NullMarked
package org.tornadomoe.checkpoint;

import org.jspecify.annotations.NullMarked;
