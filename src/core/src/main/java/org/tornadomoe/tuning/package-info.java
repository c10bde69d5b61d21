/**
 * Launch configurations: the tile sizes of GEMM launches, by token count. {@link org.tornadomoe.tuning.LaunchKey} names
 * a file, {@link org.tornadomoe.tuning.LaunchConfigs} finds and reads it, as vLLM does with its own.
 */
@NullMarked
package org.tornadomoe.tuning;

import org.jspecify.annotations.NullMarked;
