/** Quantises weights and activations to int8 values and float scales. */
@NullMarked
package org.tornadomoe.quant;

import org.jspecify.annotations.NullMarked;
