/** A layer's configuration: sizes, activation, routing, number format. Only records and enums with validation. */
@NullMarked
package org.tornadomoe.config;

import org.jspecify.annotations.NullMarked;
