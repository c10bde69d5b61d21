/** How weights and activations become int8 values and float scales. */
@NullMarked
package org.tornadomoe.quant;

import org.jspecify.annotations.NullMarked;
